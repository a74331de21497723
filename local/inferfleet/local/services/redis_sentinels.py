"""A private Redis with replicas and Sentinels, from the binary on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from inferfleet.local.services.child_process import POLL_INTERVAL_S, ChildProcess
from inferfleet.local.services.choice import Fsync
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_ping import redis_version
from inferfleet.local.services.redis_process import START_TIMEOUT_S, RedisProcess
from inferfleet.schemas.errors import ServiceUnreachableError

DOWN_AFTER_MS = 5_000
"""How long a master may be silent before the Sentinels replace it."""

SERVICE = "inferfleet"


class RedisSentinels:
    """Servers, all but one of which replicate that one, and three Sentinels. Not thread-safe.

    ``announced_ports`` are those under which the servers and the Sentinels reach each server, if not its own.
    ``environments`` has more variables for each server.
    """

    def __init__(
        self,
        *,
        server: str,
        folder: Path,
        reaper: Reaper,
        ports: Sequence[int] | None = None,
        announced_ports: Sequence[int] | None = None,
        size: int = 2,
        environments: Sequence[Mapping[str, str]] | None = None,
        fsync: Fsync = Fsync.EVERYSEC,
        down_after_ms: int = DOWN_AFTER_MS,
    ) -> None:
        ports = [free_port() for _ in range(size)] if ports is None else ports
        self.announced_ports = list(ports if announced_ports is None else announced_ports)
        self.servers = [
            RedisProcess(
                server=server,
                folder=folder / f"server-{number}",
                reaper=reaper,
                port=ports[number],
                fsync=fsync,
                environment=None if environments is None else environments[number],
                configuration={
                    "replica-announce-ip": "127.0.0.1",
                    "replica-announce-port": str(self.announced_ports[number]),
                },
            )
            for number in range(size)
        ]
        self._down_after_ms = down_after_ms
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
    def named_servers(self) -> dict[int, int]:
        """The ports that the Sentinels name to clients, each with the server's own."""
        return {
            announced: server.port
            for announced, server in zip(self.announced_ports, self.servers, strict=True)
        }

    @property
    def master(self) -> RedisProcess:
        """The master, according to the Sentinels."""
        _, port = self._ask(self._sentinel_ports[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return self.servers[self.announced_ports.index(int(port))]

    @property
    def replicas(self) -> list[RedisProcess]:
        """The other servers."""
        master = self.master
        return [server for server in self.servers if server is not master]

    def start(self) -> None:
        """Start everything, and wait until the replica follows and the Sentinels know each other."""
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_until_ready()
        self.version = self.servers[0].version
        if not self._sentinels[0].running:
            for replica in self.servers[1:]:
                self._follow(replica, self.servers[0])
            for sentinel in self._sentinels:
                sentinel.spawn()
            for sentinel, port in zip(self._sentinels, self._sentinel_ports, strict=True):
                sentinel.wait_until(lambda: redis_version("127.0.0.1", port), timeout_s=START_TIMEOUT_S)  # noqa: B023
        self.wait_until_whole()

    def restart(self, server: RedisProcess) -> None:
        """Start a server again after it was killed: as a replica, if it is not the master any more."""
        server.start()
        if (master := self.master) is not server:
            self._follow(server, master)

    def wait_until_whole(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until each Sentinel knows a master, replicas that follow it, and the other Sentinels."""
        deadline = time.monotonic() + timeout_s
        while not all(self._whole(port) for port in self._sentinel_ports):
            if time.monotonic() > deadline:
                raise ServiceUnreachableError(f"waited {timeout_s:g} s until the Sentinels agree")
            time.sleep(POLL_INTERVAL_S)

    def fail_over(self) -> None:
        """Let the replica become the master, as an operator would, and wait until everybody knows."""
        before = self.master
        self._ask(self._sentinel_ports[0], "SENTINEL", "FAILOVER", SERVICE)
        self.wait_until_replaced(before)

    def wait_until_replaced(self, master: RedisProcess) -> None:
        """Wait until the Sentinels have another master.

        Raises:
            ServiceUnreachableError: They did not fail over.

        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.master is master:
            if time.monotonic() > deadline:
                raise ServiceUnreachableError("the Sentinels did not fail over")
            time.sleep(POLL_INTERVAL_S)

    def kill(self) -> None:
        """Kill all servers with SIGKILL."""
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
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.announced_ports[0]} 2",
            f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}",
            f"sentinel failover-timeout {SERVICE} {3 * self._down_after_ms}",
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
            and len(replicas) == len(self.servers) - 1
            and all(one["flags"] == "slave" and one["master-link-status"] == "ok" for one in replicas)
        )

    def _follow(self, replica: RedisProcess, master: RedisProcess) -> None:
        port = self.announced_ports[self.servers.index(master)]
        self._ask(replica.port, "REPLICAOF", "127.0.0.1", port)

    def _dict(self, pairs: list[bytes]) -> dict[str, str]:
        words = [word.decode() for word in pairs]
        return dict(zip(words[::2], words[1::2], strict=True))

    def _ask(self, port: int, *command: Any) -> Any:
        with redis.Redis(port=port, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
            client.response_callbacks.clear()
            asked: Any = client
            return asked.execute_command(*command)
