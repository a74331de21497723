"""Makes OpenTelemetry's spans of attempts, after these have ended.

A hook only notes what an attempt was. A task of its own makes the spans, all at once and with the times
that were noted: those of the attempt, and of the attempt before it if that was lost. So an
attempt never waits for its spans, and no span is open that could be forgotten. ``span_making`` makes them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from opentelemetry.trace import Link
from typing_extensions import override

from inferfleet.schemas import Failure, Result
from inferfleet.schemas.errors import InferfleetError
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.schemas.message import trace_headers
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.schemas.span_names import LINK_TURN
from inferfleet.schemas.trace import span_of_attempt, trace_of_attempts
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.span_export import SpanExport
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.log import about
from inferfleet.worker.past_attempts import Past, past_of
from inferfleet.worker.span_making import EndedAttempt, SpanMaker, link_to

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000
"""How many attempts wait for their spans while Redis does not answer. The oldest are forgotten first."""


class AttemptSpans(Hooks):
    """Makes the spans of the attempts of one worker."""

    def __init__(self, export: SpanExport, *, settings: WorkerSettings, records: JobRecords) -> None:
        self._spans = SpanMaker(export, provider_name=settings.engine, worker_id=settings.worker_id)
        self._records = records
        self._ended: deque[EndedAttempt] = deque(maxlen=MAX_WAITING)
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @override
    def on_requeue(self, run: JobRun, entry: QueuedEntry) -> None:
        self._note(run, entry.reason, entry.failure)

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        if run is not None:
            self._note(run, result.state, result.error, result)

    def traces(self, run: JobRun) -> bool:
        """Return whether a job is traced. All attempts of a job are, or none."""
        if run.traced is None:
            # A sampler takes several µs, as long as anything else here takes for a small job.
            run.traced = self._spans.samples(run.job)
        return run.traced

    def headers_for_engine(self, run: JobRun) -> Mapping[str, str]:
        """Return the trace of a running attempt's span, for the spans of the engine."""
        job = run.job
        trace = trace_of_attempts(job.id, job.traceparent)
        span = span_of_attempt(job.id, run.attempt)
        return {**trace_headers(job), "traceparent": f"00-{trace}-{span}-01"}

    async def run(self) -> None:
        """Make the spans of ended attempts, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._ended:
                ended = self._ended.popleft()
                try:
                    await self._tell(ended)
                except Exception:
                    # A trace must not end a worker.
                    logger.exception("cannot make the spans of an attempt", extra=about(ended.job))
            self._idle.set()

    async def finish(self, *, within_s: float) -> None:
        """Wait until all attempts that have ended have their spans."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()

    def _note(self, run: JobRun, state: str, failure: Failure | None, result: Result | None = None) -> None:
        if run.attempt and self.traces(run):
            self._ended.append(EndedAttempt.of(run, state, failure, result))
            self._idle.clear()
            self._news.set()

    async def _tell(self, ended: EndedAttempt) -> None:
        past, links = Past(ended.job.waits_since if ended.attempt == 1 else None), list[Link]()
        try:
            if ended.attempt > 1:
                past = await past_of(ended.attempt, self._records.entries(ended.job.id))
            if (turn := ended.previous_turn) and (traced := await self._records.traced(turn)) is not None:
                links.append(link_to(LINK_TURN, turn, *traced))
        except (InferfleetError, LookupError, ValueError) as error:
            logger.warning("cannot read what came before an attempt (%s)", error, extra=about(ended.job))
        self._spans.make(ended, past, links)
