"""The same client for code that does not await: Django, Flask, scripts.

One background thread runs the event loop; each call here runs there and waits for its answer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_making import JobOptions
from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.result import JobRecord, Result
from inferfleet.schemas.settings import ProducerSettings


class SyncFleet:
    """A blocking client. Safe for many threads at once; errors are those of ``Fleet``."""

    def __init__(self, fleet: Fleet, portal: BlockingPortal) -> None:
        self._fleet = fleet
        self._portal = portal

    @classmethod
    @contextmanager
    def connect(cls, settings: ProducerSettings | None = None) -> Generator[SyncFleet]:
        """Connect as ``Fleet.connect`` does. Keep it open for the life of the process."""
        with (
            start_blocking_portal("asyncio") as portal,
            portal.wrap_async_context_manager(Fleet.connect(settings)) as fleet,
        ):
            yield cls(fleet, portal)

    def submit(self, work: str | Mapping[str, Any] | Job, **options: Unpack[JobOptions]) -> Job:
        """Submit one job; see ``Fleet.submit``."""
        return self._portal.call(partial(self._fleet.submit, work, **options))

    def submit_many(
        self, work: Iterable[str | Mapping[str, Any] | Job], **options: Unpack[JobOptions]
    ) -> list[Job]:
        """Submit many jobs; see ``Fleet.submit_many``."""
        return self._portal.call(partial(self._fleet.submit_many, list(work), **options))

    def get(self, job: Job | str) -> JobRecord:
        """Read what is known of a job now; see ``Fleet.get``."""
        return self._portal.call(self._fleet.get, job)

    def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Result:
        """Wait for a job's result; see ``Fleet.wait``."""
        return self._portal.call(partial(self._fleet.wait, job, timeout_s=timeout_s))

    def wait_many(self, jobs: Sequence[Job | str], *, timeout_s: float | None = None) -> list[Result]:
        """Wait for many jobs; see ``Fleet.wait_many``."""
        return self._portal.call(partial(self._fleet.wait_many, jobs, timeout_s=timeout_s))

    def stream(self, job: Job | str, *, after: str = BEGINNING) -> Generator[JournalLine]:
        """Read a job's journal as it grows; see ``Fleet.stream``."""
        lines = self._fleet.stream(job, after=after)
        try:
            while (line := self._portal.call(partial(anext, lines, None))) is not None:
                yield line
        finally:
            self._portal.call(lines.aclose)

    def cancel(self, job: Job | str) -> JobState:
        """Cancel a job; see ``Fleet.cancel``."""
        return self._portal.call(self._fleet.cancel, job)
