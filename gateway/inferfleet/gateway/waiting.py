"""Waits for answers until they are there, the client goes away, or the gateway stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from inferfleet.producer.openai.refusals import RETRY_AFTER_S, Refusal, RefusedError
from inferfleet.producer.openai.streams import EventStream

T = TypeVar("T")

COMMENT: Final = b": waiting\n\n"
COMMENT_INTERVAL_S: Final = 15.0
"""How often a stream without events gets a comment, so that no proxy takes it for dead."""


async def answered(request: Request, work: Coroutine[Any, Any, T], *, over: asyncio.Future[None]) -> T:
    """Return what ``work`` returns. Cancel it if the client goes away, or the gateway is over.

    The body must have been read.

    Raises:
        ClientDisconnect: The client has gone away.
        RefusedError: The gateway stops.

    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(until_gone(request.receive))
    try:
        waited: set[asyncio.Future[Any]] = {working, gone, over}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if gone.done():
            raise ClientDisconnect
        raise RefusedError(stopping())
    finally:
        await _cancelled(working, gone)


def stopping(then: str = "send the request again") -> Refusal:
    """Say that the gateway is shutting down, and what to do then."""
    return Refusal(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code="gateway_stopping",
        message=f"this gateway is shutting down: {then}",
        retry=True,
        after_s=RETRY_AFTER_S,
        closes=True,
    )


class EventResponse(Response):
    """Sends a stream of events until its end, the client goes away, or ``until`` is done.

    Then ``interrupted`` makes the last events. They tell the client how to go on elsewhere.
    """

    def __init__(
        self,
        stream: EventStream,
        *,
        headers: Mapping[str, str],
        until: asyncio.Future[None],
        interrupted: Callable[[], bytes],
        stalled_s: float,
    ) -> None:
        self.status_code = HTTPStatus.OK
        self.background = None
        self.init_headers(headers)
        self._stream = stream
        self._until = until
        self._interrupted = interrupted
        self._stalled_s = stalled_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        sending = asyncio.create_task(self._send_all(send))
        gone = asyncio.create_task(until_gone(receive))
        try:
            waited: set[asyncio.Future[Any]] = {sending, gone, self._until}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                # The server closes the connection of a client that reads no more.
                with suppress(TimeoutError):
                    sending.result()
            elif not gone.done():
                await _cancelled(sending)
                await self._send(send, self._interrupted(), more=False)
        finally:
            await _cancelled(sending, gone)
            await self._stream.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while events := await self._next():
            await self._send(send, events, more=True)
        await self._send(send, b"", more=False)

    async def _next(self) -> bytes:
        events = await self._stream.read(within_s=COMMENT_INTERVAL_S)
        return COMMENT if events is None else events

    async def _send(self, send: Send, events: bytes, *, more: bool) -> None:
        # Nothing else ends the stream of a client that reads no more, and keeps its connection.
        async with asyncio.timeout(self._stalled_s):
            await send({"type": "http.response.body", "body": events, "more_body": more})


async def until_gone(receive: Receive) -> None:
    """Return when the client has gone away. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
