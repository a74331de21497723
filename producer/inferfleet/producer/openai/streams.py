"""Server-sent events of an answer, which a reader may wait for as long as it likes, and leave at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import orjson

from inferfleet.producer.journal_view import BEGINNING
from inferfleet.producer.openai.refusals import Refusal, RefusedError, refusal_of
from inferfleet.schemas.errors import InferfleetError

EVENT_HEADERS: Final[Mapping[str, str]] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    # nginx would collect the events.
    "x-accel-buffering": "no",
}
"""The headers of every stream of events."""

DONE: Final = b"data: [DONE]\n\n"


def data_event(data: Mapping[str, Any]) -> bytes:
    """Make an event as OpenAI's streams have it."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def last_events(refusal: Refusal) -> bytes:
    """Make the events that end a stream before its answer is complete."""
    return data_event({"error": refusal.error()}) + DONE


class Part(NamedTuple):
    """The events of one journal line, and the line's id."""

    events: bytes
    cursor: str


class EventStream:
    """A stream of events. An error behind its first event is an event, too, made by ``last_events``.

    ``cursor`` is the id of the last journal line whose events the reader is done with: it asked for more.
    """

    def __init__(
        self,
        parts: AsyncGenerator[Part],
        *,
        last_events: Callable[[Refusal], bytes],
        cursor: str = BEGINNING,
    ) -> None:
        self._parts = parts
        self._last_events = last_events
        self._next: asyncio.Future[Part] | None = None
        self._ended = False
        self.cursor = self._given = cursor

    async def start(self, *, within_s: float | None) -> bool:
        """Wait for the first event, for at most ``within_s``, and raise the error that comes in its place.

        Returns whether there may be events.
        """
        try:
            await self._arrived(within_s)
            if self._next is not None and self._next.done() and (error := self._next.exception()):
                raise error
        except StopAsyncIteration:
            return False
        except BaseException:
            await self.aclose()
            raise
        return True

    async def read(self, *, within_s: float | None = None) -> bytes | None:
        """Read the next events; empty at the end, ``None`` if none came within ``within_s``."""
        self.cursor = self._given
        if self._ended:
            return b""
        if not await self._arrived(within_s):
            return None
        assert self._next is not None  # noqa: S101 - it has arrived
        arrived, self._next = self._next, None
        try:
            part = arrived.result()
        except (InferfleetError, RefusedError) as error:
            self._ended = True
            return self._last_events(refusal_of(error))
        except StopAsyncIteration:
            self._ended = True
            return b""
        self._given = part.cursor
        return part.events

    async def aclose(self) -> None:
        """Stop reading."""
        self._ended = True
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            with suppress(asyncio.CancelledError, Exception):
                self._next.result()
            self._next = None
        await self._parts.aclose()

    async def _arrived(self, within_s: float | None) -> bool:
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._parts))
        # This leaves it alone when the caller is cancelled.
        done, _ = await asyncio.wait({self._next}, timeout=within_s)
        return bool(done)
