"""Writes the tokens of all running jobs to their journals, and renews their leases.

The writer writes streamed jobs about every 50 ms, and their first tokens at once; other jobs about once a
second. All due writes go out in one pipeline. If a write reveals that the job was cancelled, that another
worker has it, or that Redis lost it, this module acts on that. It also keeps the sessions of running turns
from expiring.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from inferfleet.schemas.journal import QueuedEntry, RunningEntry
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.attempts import WriteStatus
from inferfleet.wire.redis.journal_lines import PendingTokens
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_histories import SessionHistories
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.log import about
from inferfleet.worker.stop_switch import Interruption

logger = logging.getLogger(__name__)


class JournalWriter:
    """Writes the journals of the runs that it follows."""

    def __init__(
        self, *, records: JobRecords, histories: SessionHistories, settings: WorkerSettings, hooks: Hooks
    ) -> None:
        self._records = records
        self._histories = histories
        self._settings = settings
        self._hooks = hooks
        self._runs: set[JobRun] = set()
        self._running = asyncio.Event()
        self._begun: list[JobRun] = []
        self._first_tokens = asyncio.Event()

    def follow(self, run: JobRun) -> None:
        """Start writing a run's tokens."""
        self._runs.add(run)
        self._running.set()

    def release(self, run: JobRun) -> None:
        """Stop writing a run's tokens; the run's last write contains the rest."""
        self._runs.discard(run)
        if not self._runs:
            self._running.clear()

    def begin(self, run: JobRun) -> None:
        """Record that a run has its first tokens, which the readers of a streamed job should see at once."""
        if run.job.stream:
            self._begun.append(run)
            self._first_tokens.set()

    async def write_first(self) -> None:
        """Write the first tokens of streamed runs at once, until cancelled."""
        while True:
            await self._first_tokens.wait()
            self._first_tokens.clear()
            begun, self._begun = self._begun, []
            await self._write([run for run in begun if run in self._runs and run.answer.has_fresh_tokens])

    async def write_streamed(self) -> None:
        """Write the streamed runs at their short interval, until cancelled."""
        while await self._running.wait():
            await asyncio.sleep(self._settings.journal_flush_streamed_s)
            await self._write([run for run in self._runs if run.job.stream and run.answer.has_fresh_tokens])

    async def write_all(self) -> None:
        """Write every run at the long interval, until cancelled. Without new tokens this renews the lease."""
        interval_s = min(self._settings.journal_flush_s, self._settings.lease_s / 3)
        while await self._running.wait():
            await asyncio.sleep(interval_s)
            await self._write(list(self._runs))
            await self._renew_sessions()

    async def _renew_sessions(self) -> None:
        """Keep the sessions of running turns from expiring. No other write does so before a turn ends."""
        now = time.monotonic()
        due = now - self._settings.queued_ttl_s / 4
        for run in [run for run in self._runs if run.job.session_id and run.session_renewed <= due]:
            run.session_renewed = now
            await self._histories.renew(run.job, fence=run.fence, witness=run.delivery.witness)

    async def _write(self, runs: list[JobRun]) -> None:
        if not runs:
            return
        began = time.monotonic()
        tokens = await asyncio.gather(*(self._append(run) for run in runs))
        self._hooks.on_flush(sum(tokens), time.monotonic() - began)

    async def preempted(self, run: JobRun) -> None:
        """Write a run's new tokens, and that it has lost its slot."""
        entry = QueuedEntry(
            at=self._records.clock.now(), attempt=run.attempt, reason="handed_over", preempted=True
        )
        await self._note(run, entry, 2 * run.preemptions - 1)

    async def resumed(self, run: JobRun) -> None:
        """Write that a run has a slot again."""
        entry = RunningEntry(
            at=self._records.clock.now(),
            attempt=run.attempt,
            worker_id=self._settings.worker_id,
            resumed_from=run.answer.tokens,
            model_identity=run.model_identity,
        )
        await self._note(run, entry, 2 * run.preemptions)

    async def _note(self, run: JobRun, entry: QueuedEntry | RunningEntry, number: int) -> None:
        pending = run.answer.take_pending()
        await self._write_pending(
            run,
            pending,
            lambda: self._records.note(
                run.job.id,
                fence=run.fence,
                lease_s=self._settings.lease_s,
                pending=pending,
                entry=entry,
                number=number,
            ),
        )

    async def _append(self, run: JobRun) -> int:
        """Write a run's new tokens, and return their number."""
        pending = run.answer.take_pending()
        await self._write_pending(
            run,
            pending,
            lambda: self._records.append(
                run.job.id, fence=run.fence, lease_s=self._settings.lease_s, pending=pending
            ),
        )
        return pending.count

    async def _write_pending(
        self, run: JobRun, pending: PendingTokens, write: Callable[[], Awaitable[WriteStatus]]
    ) -> None:
        match await self.write(run, write):
            case WriteStatus.CANCEL:
                run.interrupt(Interruption.CANCELLED)
            case WriteStatus.INTERRUPT:
                run.interrupt(Interruption.INTERRUPTED)
            case WriteStatus.FENCED:
                run.tokens_refused += pending.count
                if run in self._runs:
                    run.interrupt(Interruption.SUPERSEDED)
            case WriteStatus.OK | WriteStatus.MISSING:
                pass

    async def write(self, run: JobRun, write: Callable[[], Awaitable[WriteStatus]]) -> WriteStatus:
        """Do one write for a run. If Redis lost the job's record, restore it first."""
        while (written := await write()) is WriteStatus.MISSING:
            restored = await self._records.restore(
                run.job,
                fence=run.fence,
                charged=run.charged,
                worker_id=self._settings.worker_id,
                lease_s=self._settings.lease_s,
                started_at=run.started_at,
                chunks=run.answer.journaled,
                head=run.answer.head,
                reply_to=run.reply_to,
                model_identity=run.model_identity or "",
            )
            logger.warning(
                "Redis lost the record or the journal of a running job",
                extra={
                    **about(run.job, attempt=run.attempt),
                    "restored": restored,
                    "tokens": run.answer.tokens_generated,
                },
            )
        return written
