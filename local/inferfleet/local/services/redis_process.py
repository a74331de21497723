"""A private Redis from the binary on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from inferfleet.local.services.child_process import ChildProcess
from inferfleet.local.services.choice import Fsync
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_ping import redis_version

START_TIMEOUT_S = 90.0


def redis_binary() -> str | None:
    """Find the server."""
    return shutil.which("redis-server")


class RedisProcess:
    """Redis as a child process on 127.0.0.1, always on the same port, with an append-only file.

    ``configuration`` has more options, by their names in ``redis.conf``, ``environment`` more variables. Not
    thread-safe.
    """

    def __init__(
        self,
        *,
        server: str,
        folder: Path,
        reaper: Reaper,
        port: int | None = None,
        fsync: Fsync = Fsync.EVERYSEC,
        configuration: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port() if port is None else port
        self.version = ""
        self.data = folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.data),
            "save": "",
            "appendonly": "yes",
            "appendfsync": fsync.value,
            **(configuration or {}),
        }
        self._server = ChildProcess(
            name="redis-server",
            command=[server, *(word for name, value in options.items() for word in (f"--{name}", value))],
            environment={**os.environ, **(environment or {})},
            log=folder / "redis.log",
            reaper=reaper,
        )

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id. Raises ``RuntimeError`` if the server is not running."""
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._server.running

    def launch(self) -> None:
        """Start the server without waiting until it serves."""
        self._server.spawn()

    def wait_until_ready(self) -> None:
        """Return when Redis has loaded its data and answers.

        Raises:
            ServiceUnreachableError: The server did not start; the message has the end of its log.

        """
        self.version = self._server.wait_until(
            lambda: redis_version("127.0.0.1", self.port), timeout_s=START_TIMEOUT_S
        )

    def start(self, *, keep_data: bool = True) -> None:
        """Start on the same port, with its earlier data or empty, and wait until the server serves."""
        if not keep_data:
            shutil.rmtree(self.data)
            self.data.mkdir()
        self.launch()
        self.wait_until_ready()

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._server.kill()

    def stop(self) -> None:
        """Stop the server as an operator would."""
        self._server.stop()

    def close(self) -> None:
        """Kill the server for good."""
        self._server.kill()
