"""A private Redis with a replica and Sentinels, from the binary on this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from inferfleet.local.services.child_process import POLL_INTERVAL_S, ChildProcess
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_ping import redis_version
from inferfleet.local.services.redis_process import START_TIMEOUT_S, RedisProcess
from inferfleet.schemas.errors import ServiceUnreachableError

DOWN_AFTER_MS = 5_000
"""How long a master may be silent before the Sentinels replace it."""

SERVICE = "inferfleet"


class RedisSentinels:
    """Two servers, one of which replicates the other, and three Sentinels. Not thread-safe."""

    def __init__(self, *, server: str, folder: Path, reaper: Reaper) -> None:
        self.servers = [
            RedisProcess(server=server, folder=folder / f"server-{number}", reaper=reaper)
            for number in range(2)
        ]
        self._sentinel_ports = [free_port() for _ in range(3)]
        self._sentinels = [
            self._sentinel(server, folder / f"sentinel-{number}", port, reaper)
            for number, port in enumerate(self._sentinel_ports)
        ]
        self.version = ""

    @property
    def url(self) -> str:
        """The URL with all Sentinels."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._sentinel_ports)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    @property
    def master(self) -> RedisProcess:
        """The master, according to the Sentinels."""
        _, port = self._ask(self._sentinel_ports[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def start(self) -> None:
        """Start everything, and wait until the replica follows and the Sentinels know each other."""
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_until_ready()
        self.version = self.servers[0].version
        if not self._sentinels[0].running:
            self._ask(self.servers[1].port, "REPLICAOF", "127.0.0.1", self.servers[0].port)
            for sentinel in self._sentinels:
                sentinel.spawn()
            for sentinel, port in zip(self._sentinels, self._sentinel_ports, strict=True):
                sentinel.wait_until(lambda: redis_version("127.0.0.1", port), timeout_s=START_TIMEOUT_S)  # noqa: B023
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until each Sentinel knows a master, a replica that follows it, and the other Sentinels."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(self._whole(port) for port in self._sentinel_ports):
            if time.monotonic() > deadline:
                raise ServiceUnreachableError(f"waited {START_TIMEOUT_S:g} s until the Sentinels agree")
            time.sleep(POLL_INTERVAL_S)

    def fail_over(self) -> None:
        """Let the replica become the master, as an operator would, and wait until everybody knows."""
        before = self.master
        self._ask(self._sentinel_ports[0], "SENTINEL", "FAILOVER", SERVICE)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.master is before:
            if time.monotonic() > deadline:
                raise ServiceUnreachableError("the Sentinels did not fail over")
            time.sleep(POLL_INTERVAL_S)

    def kill(self) -> None:
        """Kill both servers with SIGKILL."""
        for server in self.servers:
            server.kill()

    def close(self) -> None:
        """Kill everything for good."""
        for sentinel in self._sentinels:
            sentinel.kill()
        self.kill()

    def _sentinel(self, server: str, folder: Path, port: int, reaper: Reaper) -> ChildProcess:
        folder.mkdir(parents=True)
        configuration = folder / "sentinel.conf"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} {3 * DOWN_AFTER_MS}",
        ]
        configuration.write_text("\n".join(lines) + "\n")
        return ChildProcess(
            name="redis-sentinel",
            command=[server, str(configuration), "--sentinel"],
            environment=os.environ,
            log=folder / "sentinel.log",
            reaper=reaper,
        )

    def _whole(self, port: int) -> bool:
        state = self._dict(self._ask(port, "SENTINEL", "MASTER", SERVICE))
        replicas = [self._dict(one) for one in self._ask(port, "SENTINEL", "REPLICAS", SERVICE)]
        return (
            state["flags"] == "master"
            and state["num-other-sentinels"] == "2"
            and any(one["flags"] == "slave" and one["master-link-status"] == "ok" for one in replicas)
        )

    def _dict(self, pairs: list[bytes]) -> dict[str, str]:
        words = [word.decode() for word in pairs]
        return dict(zip(words[::2], words[1::2], strict=True))

    def _ask(self, port: int, *command: Any) -> Any:
        with redis.Redis(port=port, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
            client.response_callbacks.clear()
            asked: Any = client
            return asked.execute_command(*command)
