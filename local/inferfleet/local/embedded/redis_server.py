"""An embedded Redis: fakeredis behind a TCP port, including Lua scripts."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from fakeredis import TcpFakeServer
from redis.exceptions import ResponseError

MEMORY = "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n"
"""The reply to INFO: nothing is ever evicted."""


class EmbeddedRedis:
    """A Redis look-alike that lives as long as its ``with`` block, and keeps everything in memory."""

    def __init__(self) -> None:
        self._server = TcpFakeServer(("127.0.0.1", 0))
        # A client in a blocked read keeps its thread until the read ends; do not wait for that.
        self._server.daemon_threads = True
        self._connections: set[socket.socket] = set()
        self._server.RequestHandlerClass = _improved(self._server.RequestHandlerClass, self._connections)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="embedded-redis",
            daemon=True,
        )

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self._server.server_address[1]}/0"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _improved(handler: Any, connections: set[socket.socket]) -> Any:
    """Fix three problems of fakeredis' connection handler (2.40), and keep a list of connections.

    The handler closes the connection after a failed command, which loses the rest of a pipeline. It leaves
    Nagle's algorithm on, so that each pipeline waits 40 ms for the client's delayed TCP ACK. And it has no
    INFO, which clients use to find out whether keys may be evicted.
    """

    class Handler(handler):  # type: ignore[misc]  # the class is private to fakeredis
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            read_response = self.current_client.read_response

            def read_response_or_error() -> Any:
                # A returned error is sent like any other reply.
                try:
                    return read_response()
                except ResponseError as error:
                    return MEMORY if "unknown command 'info'" in str(error).lower() else error

            self.current_client.read_response = read_response_or_error
            connections.add(self.connection)

        def finish(self) -> None:
            connections.discard(self.connection)
            super().finish()

    return Handler
