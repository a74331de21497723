"""Writes the lines in clients' reply streams that say which of their jobs have ended.

Jobs that end within one turn of the event loop take one command per waiting client.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from inferfleet.schemas.job import JobState
from inferfleet.schemas.names import reply_key
from inferfleet.wire.redis import process_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline

logger = logging.getLogger(__name__)

REPLY_STREAM_LENGTH = 20_000
"""About how many lines a reply stream keeps. A client that falls further behind finds results by records."""

REPLY_TTL_S = 3600
"""How long a reply stream outlives its last line."""


class Replies:
    """Writes reply lines behind the commits that they announce."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline
        self._lines: dict[str, list[str]] = {}

    def add(self, reply_to: str, job_id: str, state: JobState) -> None:
        """Tell a client by a command behind those that are enqueued in this turn of the event loop.

        Nobody waits for the reply: if the line is lost, the client finds the result by the record. More than
        one line for a job does no harm.
        """
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._send)
        self._lines.setdefault(reply_to, []).extend((job_id, state.value))

    def _send(self) -> None:
        lines, self._lines = self._lines, {}
        for reply_to, pairs in lines.items():
            self._write(reply_to, *pairs).add_done_callback(_report)

    async def tell(self, reply_to: str, job_id: str, state: JobState) -> None:
        """Tell a client at once."""
        await self._write(reply_to, job_id, state.value)

    def _write(self, reply_to: str, *pairs: str) -> asyncio.Future[Any]:
        return self._pipeline.enqueue(
            *process_scripts.reply(reply_key(reply_to), *pairs, length=REPLY_STREAM_LENGTH, ttl_s=REPLY_TTL_S)
        )


async def wake(pipeline: CommandPipeline, client: str) -> None:
    """Wake the blocked read of a client's reply stream."""
    key = reply_key(client)
    await asyncio.gather(
        pipeline.enqueue("XADD", key, "MAXLEN", "~", REPLY_STREAM_LENGTH, "*", "wake", ""),
        pipeline.enqueue("EXPIRE", key, REPLY_TTL_S),
    )


def _report(written: asyncio.Future[Any]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        logger.warning("cannot notify a client of finished jobs (%s)", error)
