"""Redis without Redis: fakeredis behind a TCP port, Lua scripts included."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from fakeredis import TcpFakeServer


class EmbeddedRedis:
    """A Redis look-alike that lives as long as its ``with`` block. Everything in it is in memory."""

    def __init__(self) -> None:
        self._server = TcpFakeServer(("127.0.0.1", 0))
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
