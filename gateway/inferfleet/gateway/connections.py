"""Limits of a connection before there is a request: uvicorn waits for headers as long as a client likes."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES: Final = 64 * 1024

_UPGRADE: Final = re.compile(rb"(?i)(?<=\r\n)upgrade(?=:)")


class LimitedProtocol(HttpToolsProtocol):
    """Closes a connection whose next request has too long a head, or takes too long to send it.

    A connection between two requests is closed by uvicorn's own limit.
    """

    def __init__(self, *arguments: Any, head_timeout_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timeout_s = head_timeout_s
        self._head_bytes = 0
        self._in_body = False
        self._too_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take the next bytes."""
        if not self._in_body:
            self._head_bytes += len(data)
            data = _without_upgrade(data)
        super().data_received(data)
        if self._has_request():
            self._forget_head()
        elif self._in_body:
            # It has been answered. The rest of its body may take as long as a head.
            self._head_bytes = 0
            self._expect_head()
        elif self._head_bytes > MAX_HEADER_BYTES:
            self.transport.close()
        else:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request."""
        self._in_body = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._forget_head()
        super().connection_lost(exc)

    def _has_request(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _expect_head(self) -> None:
        if self._too_late is None:
            self._too_late = self.loop.call_later(self._head_timeout_s, self.transport.close)

    def _forget_head(self) -> None:
        self._head_bytes = 0
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


def _without_upgrade(data: bytes) -> bytes:
    """Rename the header by which clients offer HTTP/2: the parser would leave the body to that."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"x-upgrade", head) + end + rest
