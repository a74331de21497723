"""A caller's handle on one job."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.schemas.job import JobState
from inferfleet.schemas.result import JobRecord, Result

if TYPE_CHECKING:
    from inferfleet.producer.fleet import Fleet


class JobHandle:
    """A handle on one job, with the methods of ``Fleet`` for one job, and their errors."""

    def __init__(self, job_id: str, fleet: Fleet) -> None:
        self.id = job_id
        self._fleet = fleet

    async def get(self) -> JobRecord:
        """Read the job's record; see ``Fleet.get``."""
        return await self._fleet.get(self.id)

    async def wait(self, *, timeout_s: float | None = None) -> Result:
        """Wait for the job's result; see ``Fleet.wait``."""
        return await self._fleet.wait(self.id, timeout_s=timeout_s)

    def stream(self, *, after: str = BEGINNING) -> AsyncGenerator[JournalLine]:
        """Read the job's journal as it grows; see ``Fleet.stream``."""
        return self._fleet.stream(self.id, after=after)

    def text_stream(self, *, after: str = BEGINNING) -> AsyncGenerator[str]:
        """Read the text of the job's answer as it grows; see ``Fleet.text_stream``."""
        return self._fleet.text_stream(self.id, after=after)

    async def cancel(self) -> JobState:
        """Cancel the job; see ``Fleet.cancel``."""
        return await self._fleet.cancel(self.id)
