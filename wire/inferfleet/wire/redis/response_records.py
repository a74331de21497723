"""What the Responses API keeps of a request, in the slot of the job that the request became."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from inferfleet.schemas.names import job_key, journal_key, response_key, result_key
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.streams import Line

_KEYS: Final = (job_key, journal_key, result_key, response_key)
"""What belongs to a response."""


class ResponseRecords:
    """The records of all responses, each by the id of its job.

    A record lives as long as the result of its job.
    """

    def __init__(self, pipeline: CommandPipeline, *, queued_ttl_s: int, result_ttl_s: int) -> None:
        self._pipeline = pipeline
        self.clock = pipeline.clock
        """Redis' time."""
        # An unfinished job may exist for longer than it may wait. Its end sets another time.
        self._ttl_s = 2 * queued_ttl_s
        self._continued_ttl_s = queued_ttl_s + result_ttl_s

    async def save(self, job_id: str, record: bytes) -> None:
        """Store the record of a response, unless there is one."""
        await self._pipeline.execute("SET", response_key(job_id), record, "EX", self._ttl_s, "NX")

    async def read(self, job_id: str) -> bytes | None:
        """Read the record of a response; ``None`` if there is none."""
        record: bytes | None = await self._pipeline.execute("GET", response_key(job_id))
        return record

    async def renew(self, job_ids: Iterable[str]) -> None:
        """Keep responses, with their answers, for as long as a job that is about to continue them."""
        await asyncio.gather(
            *(
                self._pipeline.enqueue("EXPIRE", key(job_id), self._continued_ttl_s, "GT")
                for job_id in job_ids
                for key in _KEYS
            )
        )

    async def journal(self, job_id: str) -> list[Line]:
        """Read all lines that the journal of a response's job has now."""
        lines: list[Line] | None = await self._pipeline.execute("XRANGE", journal_key(job_id), "-", "+")
        return lines or []

    async def delete(self, job_id: str) -> None:
        """Forget a response. Its job goes on."""
        await self._pipeline.execute("DEL", response_key(job_id))

    async def forget(self, job_id: str) -> None:
        """Forget a response whose job has ended, with its answer. That the job has ended stays known."""
        await self._pipeline.execute("DEL", response_key(job_id), result_key(job_id), journal_key(job_id))
