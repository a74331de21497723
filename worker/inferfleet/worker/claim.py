"""Claims a job for this worker: checks its request, waits for a slot, takes its fence."""

from __future__ import annotations

import asyncio
import logging
import os
from itertools import count
from typing import assert_never

from inferfleet.schemas import Failure, FailureCode, Job, JobState
from inferfleet.schemas.endpoints import not_answered
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import schedule_problem
from inferfleet.schemas.passages import passages_problem
from inferfleet.schemas.request import check_request
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.attempts import Started, StartStatus
from inferfleet.wire.redis.records import JobRecords
from inferfleet.worker.fronts import Fronts
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.log import about
from inferfleet.worker.outcomes import Defer, Drop, Finish, GiveUp, Outcome, PassOn, Postpone, cancelled
from inferfleet.worker.ports import Engine, Generation, GenerationError, as_adapter_engine
from inferfleet.worker.preparation import Preparation
from inferfleet.worker.replaceable_engine import ReplaceableEngine
from inferfleet.worker.slots import Slots
from inferfleet.worker.turns import Turns

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024 * 1024
"""The largest body that a worker accepts: RabbitMQ's own limit. Producers have a setting for theirs."""

EARLY_S = 60.0
"""How long a worker holds a message that has come before its job may start. Otherwise RabbitMQ keeps it.

At least a second: RabbitMQ would bring a message with a shorter delay back at once, again and again.
"""

DEFER_MIN_S = 0.05
"""The shortest time before a waiting message is tried again, so that it does not spin."""


class Claims:
    """The claims of this worker, of which at most one is on a suspect."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        engine: ReplaceableEngine,
        records: JobRecords,
        preparation: Preparation,
        turns: Turns,
        slots: Slots,
        fronts: Fronts,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._records = records
        self._preparation = preparation
        self._turns = turns
        self._slots = slots
        self._fronts = fronts
        self._incarnation = f"{settings.worker_id}:{os.urandom(4).hex()}"
        self._starts = count()
        self._suspects = asyncio.Lock()

    async def claim(self, run: JobRun, generation: Generation) -> Started | Outcome:
        """Wait for a slot and take the fence. ``release`` the run once its attempt has ended.

        From then on until its release, the run is pinned to the engine that is current now.
        """
        if 0 < (early_s := self._early_s(run.job)) <= EARLY_S:
            # It needs no slot, and must preempt no other job yet. Redis decides, once it asks for a start.
            return Defer(max(early_s, DEFER_MIN_S))
        delivered = run.started
        if not self._slots.take_free(run):
            limited = run.delivery.warm and run.delivery.witness is None
            # Its queue may have had it for the other half.
            at_most_s = self._settings.warm_wait_s / 2 if limited else None
            try:
                async with asyncio.timeout(at_most_s):
                    with run.delivery.waiting_for_slot():
                        if not await self._slots.take(run):
                            return self._refused_slot()
            except TimeoutError:
                return PassOn()
        started = await self._start(run, generation)
        if started.status is StartStatus.SUSPECT:
            logger.warning(
                "job may have killed its workers; running it beside no other such job",
                extra=about(run.job, attempt=run.attempt),
            )
            self._engine.unpin(run)
            self._slots.leave(run)
            if not await self._take_suspects_place(run):
                # A worker that runs no suspect may take it, if there is one.
                return Defer(0.0)
            if not await self._slots.take(run):
                return self._refused_slot()
            started = await self._start(run, generation)
        apart = run.delivery.warm or run.delivery.witness is not None or run.promoted
        if started.first_entered_ms is not None and not apart:
            self._fronts.delivered(run.job.priority, started.first_entered_ms, delivered)
        match self._refused(run.job, started):
            case None:
                return started
            case Finish() | GiveUp() as end:
                await self._preparation.recall(run, started)
                return await self._turns.unless_answered(run, end)
            case outcome:
                return outcome

    def _early_s(self, job: Job) -> float:
        if job.not_before is None or schedule_problem(job) is not None:
            return 0.0
        return (job.not_before - self._records.clock.now()).total_seconds()

    def release(self, run: JobRun) -> None:
        """Give up the run's engine, and let the next suspect run."""
        self._engine.unpin(run)
        if run.runs_alone:
            run.runs_alone = False
            self._suspects.release()

    async def _take_suspects_place(self, run: JobRun) -> bool:
        """Wait until no other suspect runs here, but no longer than a lease."""
        try:
            async with asyncio.timeout(self._settings.lease_s):
                await self._suspects.acquire()
        except TimeoutError:
            return False
        run.runs_alone = True
        return True

    def _refused_slot(self) -> Defer:
        """Give the message back: at once after a pause, even if it has ended; a drain does it by itself."""
        return Defer() if self._slots.closed else Defer(0.0)

    async def _start(self, run: JobRun, generation: Generation) -> Started:
        engine = self._engine.pin(run)
        run.problem = _problem(run.job, engine)
        run.identity = engine.identity
        if run.problem is None and (adapting := as_adapter_engine(engine)) is not None:
            try:
                run.identity = await adapting.identify(generation)
            except GenerationError as error:
                run.problem = Failure(code=error.code, message=str(error)[:4096])
        run.resumable = run.problem is None and _resumable(generation, engine)
        started = await self._records.start(
            run.job,
            token=f"{self._incarnation}:{next(self._starts)}",
            worker_id=self._settings.worker_id,
            lease_s=self._settings.lease_s,
            resumable=run.resumable,
            alone=run.runs_alone,
            reply_to=run.delivery.reply_to,
            model_identity=self._preparation.model_identity(run),
            only_ends=schedule_problem(run.job) is not None,
        )
        run.start(started)
        return started

    def _refused(self, job: Job, started: Started) -> Outcome | None:
        """Return the outcome if the start was refused; ``None`` if it was granted."""
        match started.status:
            case StartStatus.STARTED | StartStatus.INTERRUPTED:
                return None
            case StartStatus.DONE:
                return Drop()
            case StartStatus.BUSY | StartStatus.SUSPECT:
                return Defer(max(started.busy_s, DEFER_MIN_S))
            case StartStatus.EARLY if started.busy_s > EARLY_S:
                return Postpone(started.busy_s)
            case StartStatus.EARLY:
                return Defer(max(started.busy_s, DEFER_MIN_S))
            case StartStatus.CANCELLED:
                return cancelled("cancelled before it ran again")
            case StartStatus.EXPIRED:
                return Finish(
                    JobState.EXPIRED,
                    failure=Failure(
                        code=FailureCode.EXPIRED,
                        message=f"not started before its expires_at, {job.expires_at}",
                    ),
                )
            case StartStatus.EXHAUSTED:
                return GiveUp(
                    Failure(
                        code=FailureCode.TOO_MANY_ATTEMPTS,
                        message=f"started {started.charged} times without an end: its workers died",
                    )
                )
            case _:
                assert_never(started.status)


def _problem(job: Job, engine: Engine) -> Failure | None:
    try:
        check_request(job.endpoint, job.body, max_body_bytes=MAX_BODY_BYTES)
    except InvalidJobError as error:
        return Failure(code=FailureCode.INVALID_REQUEST, message=str(error)[:4096])
    if job.retrieve is not None and job.passages is None:
        message = "retrieve: the submitter fetches the passages, and has not: use a client or a gateway"
        return Failure(code=FailureCode.INVALID_REQUEST, message=message)
    if job.after is not None:
        message = "after: clients and gateways let such a job wait; submit it with one of them"
        return Failure(code=FailureCode.INVALID_REQUEST, message=message)
    if problem := schedule_problem(job):
        return Failure(code=FailureCode.INVALID_REQUEST, message=problem)
    if job.passages and (problem := passages_problem(job.endpoint, job.body)):
        return Failure(code=FailureCode.INVALID_REQUEST, message=problem)
    if job.endpoint not in engine.endpoints:
        message = not_answered(job.endpoint, model=engine.model, answers=engine.endpoints)
        return Failure(code=FailureCode.INVALID_REQUEST, message=message)
    return None


def _resumable(generation: Generation, engine: Engine) -> bool:
    """Return whether another attempt may resume the answer."""
    try:
        return engine.resumable(generation)
    except Exception:
        # No attempt is counted before the start: an error here would requeue the job for ever.
        logger.exception("cannot tell whether a job can be resumed", extra={"job_id": generation.id})
        return False
