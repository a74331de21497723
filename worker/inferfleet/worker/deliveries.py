"""Messages put together from the frames of a channel that only consumes.

aiormq would give each delivery a turn of its reader and a task of its own, a tenth of what a job costs here.
So deliveries are taken out of the channel's frames as these arrive; every other frame goes the usual way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

Frame = tuple[int, object]
"""A frame as aiormq's connection hands it to a channel, behind its weight."""

OnMessage = Callable[[Basic.Deliver, Basic.Properties, bytes], None]
"""Gets a delivery, the properties of its message and the body."""


class Deliveries:
    """Stands in for ``put`` of a channel's queue of frames."""

    def __init__(self, pass_on: Callable[[Frame], Coroutine[Any, Any, None]], on_message: OnMessage) -> None:
        self._pass_on = pass_on
        self._on_message = on_message
        self._deliver: Basic.Deliver | None = None
        self._header = ContentHeader()
        self._parts: list[bytes] = []
        self._missing = 0

    @classmethod
    def taken_from(cls, frames: asyncio.Queue[Frame], on_message: OnMessage) -> None:
        """Call ``on_message`` with each delivery from now on."""
        frames.put = cls(frames.put, on_message).put  # type: ignore[method-assign]

    async def put(self, item: Frame) -> None:
        """Take a frame. A message is its delivery, its header, and bodies up to the header's size."""
        match item[1]:
            case Basic.Deliver() as deliver:
                self._deliver = deliver
            case ContentHeader() as header if self._deliver is not None:
                self._header, self._parts, self._missing = header, [], header.body_size or 0
                self._end(self._deliver)
            case ContentBody(value=part) if self._deliver is not None:
                self._parts.append(part)
                self._missing -= len(part)
                self._end(self._deliver)
            case _:
                await self._pass_on(item)

    def _end(self, deliver: Basic.Deliver) -> None:
        if self._missing <= 0:
            self._deliver = None
            self._on_message(deliver, self._header.properties, b"".join(self._parts))
