"""The blocking twin of ``JobHandle``."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.schemas.job import JobState
from inferfleet.schemas.result import JobRecord, Result

if TYPE_CHECKING:
    from inferfleet.producer.sync import SyncFleet


class SyncJobHandle:
    """A blocking handle on one job, with the methods of ``JobHandle``, and their errors."""

    def __init__(self, job_id: str, fleet: SyncFleet) -> None:
        self.id = job_id
        self._fleet = fleet

    def get(self) -> JobRecord:
        """Read the job's record; see ``Fleet.get``."""
        return self._fleet.get(self.id)

    def wait(self, *, timeout_s: float | None = None) -> Result:
        """Wait for the job's result; see ``Fleet.wait``."""
        return self._fleet.wait(self.id, timeout_s=timeout_s)

    def stream(self, *, after: str = BEGINNING) -> Generator[JournalLine]:
        """Read the job's journal as it grows; see ``Fleet.stream``."""
        return self._fleet.stream(self.id, after=after)

    def text_stream(self, *, after: str = BEGINNING) -> Generator[str]:
        """Read the text of the job's answer as it grows; see ``Fleet.text_stream``."""
        return self._fleet.text_stream(self.id, after=after)

    def cancel(self) -> JobState:
        """Cancel the job; see ``Fleet.cancel``."""
        return self._fleet.cancel(self.id)
