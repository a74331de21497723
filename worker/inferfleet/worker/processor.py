"""What happens to one delivery, from its bytes to its outcome."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import assert_never

from inferfleet.schemas import Failure, FailureCode, Job, JobState
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.journal import RestartReason, TokenChunk
from inferfleet.schemas.message import read_job
from inferfleet.schemas.request import check_request
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.attempts import Started, Verdict, Written
from inferfleet.wire.journal_lines import generated, head_of
from inferfleet.wire.records import JobRecords
from inferfleet.worker.broker import Delivery
from inferfleet.worker.job_run import Interruption, JobRun
from inferfleet.worker.journal import JournalWriter
from inferfleet.worker.metrics import WorkerMetrics
from inferfleet.worker.outcomes import (
    DeadLetter,
    Defer,
    Drop,
    Finish,
    HandOver,
    Outcome,
    RetryPolicy,
    after_failure,
)
from inferfleet.worker.ports import (
    Completion,
    Engine,
    EngineDeadError,
    Generation,
    GenerationError,
    NotContinuableError,
)
from inferfleet.worker.settlement import Settlement
from inferfleet.worker.slots import Slots
from inferfleet.worker.turns import Turns

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024 * 1024
"""What a worker accepts at most: RabbitMQ's own limit. The producers' limit is a setting of theirs."""

DEFER_MIN_S = 0.05
"""A message that has to wait comes again no sooner than this, so that it does not spin."""

TRACE_HEADERS = ("traceparent", "tracestate")


class Processor:
    """Runs jobs on an engine. One call of ``process`` for each delivery, all at the same time."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        engine: Engine,
        records: JobRecords,
        journal: JournalWriter,
        turns: Turns,
        settlement: Settlement,
        slots: Slots,
        metrics: WorkerMetrics,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._records = records
        self._journal = journal
        self._turns = turns
        self._settlement = settlement
        self._slots = slots
        self._metrics = metrics
        self._policy = RetryPolicy(base_s=settings.retry_base_s, cap_s=settings.retry_cap_s)
        self._chance = random.Random()  # noqa: S311 - jitter, not secrets
        self._incarnation = f"{settings.worker_id}:{os.urandom(4).hex()}"
        self._starts = count()
        self._suspects = asyncio.Lock()
        self._runs: dict[str, JobRun] = {}

    @property
    def runs(self) -> Mapping[str, JobRun]:
        """The jobs that run here now, or wait for a slot or a retry, by id."""
        return self._runs

    def interrupt(self, job_id: str, reason: Interruption) -> None:
        """Stop a job if it is here."""
        if (run := self._runs.get(job_id)) is not None:
            run.interrupt(reason)
            self._slots.skip(run)

    async def process(self, delivery: Delivery) -> None:
        """Take a delivery, and the turns that it carries, to its end. Only a dead engine makes this raise.

        Raises:
            EngineDeadError: The job is back in the queue; this process should end.

        """
        unsettled: Delivery | None = delivery
        while unsettled is not None:
            unsettled = await self._process(unsettled)

    async def _process(self, delivery: Delivery) -> Delivery | None:
        """Run a delivery's job. Returns the delivery if it carries another one now."""
        try:
            job = read_job(
                delivery.body,
                message_type=delivery.properties.get("message_type", ""),
                content_encoding=delivery.properties.get("content_encoding", ""),
            )
            if "submitted_at" not in job.model_fields_set:
                job = job.model_copy(update={"submitted_at": self._records.clock.now()})
        except InvalidJobError as error:
            failure = Failure(code=FailureCode.INVALID_REQUEST, message=f"not a job: {error}"[:4096])
            return await self._settlement.bury_unreadable(
                delivery, failure, is_running=lambda job_id: job_id in self._runs
            )
        known = self._runs.get(job.id)
        if known is not None:
            # The connection was lost, or the job was published twice, while it runs here. It goes on,
            # and the newest delivery is the one to settle.
            logger.info("job is running here already", extra={"job_id": job.id})
            if delivery.witness is not None and known.delivery.witness is None:
                # It has a message of its own, and needs no other to carry it.
                delivery.ack()
                return None
            known.delivery.ack()
            known.delivery = delivery
            # If the job pauses, it does so behind the new delivery now.
            known.wake()
            return None
        run = JobRun(job=job, delivery=delivery, now=self._records.clock.now)
        self._runs[job.id] = run
        try:
            settled, carrying = await self._run(run)
        except Exception:
            # The caller gives back the delivery it knows of; one that came since is ours to give back.
            if run.delivery is not delivery:
                await run.delivery.requeue()
            raise
        finally:
            self._slots.leave(run)
            del self._runs[job.id]
        if run.delivery is not settled:
            # It came again while the settling was under way; the record says what to do with it.
            await self.process(run.delivery)
        return carrying

    async def _run(self, run: JobRun) -> tuple[Delivery, Delivery | None]:
        """Returns the delivery that was settled, and the same if it carries another job now."""
        engine_died: EngineDeadError | None = None
        try:
            outcome = await self._attempt(run)
        except EngineDeadError as error:
            # It counts as an attempt: a job that kills its engine must not do so for ever. Those that wait
            # for a slot have no part in it, and must not start on a dead engine.
            self._slots.close()
            engine_died = error
            outcome = HandOver(refund=False)
        except Exception as error:
            logger.exception("unexpected error in a job", extra={"job_id": run.job.id})
            outcome = self._after(run, Failure(code=FailureCode.INTERNAL, message=type(error).__name__))
        finally:
            self._journal.release(run)
        delivery = run.delivery
        carrying = await self._settlement.settle(run, delivery, outcome)
        if engine_died is not None:
            raise engine_died
        return delivery, carrying

    async def _attempt(self, run: JobRun) -> Outcome:
        job = run.job
        generation = _generation(run)
        # Checked before the engine sees it, carried out once the job is ours.
        problem = self._problem(job)
        resumable = problem is None and self._resumable(generation)
        with run.delivery.waiting_for_slot():
            if not await self._slots.take(run):
                return Defer()
        started = await self._start(run, resumable=resumable, alone=False)
        if started.verdict is not Verdict.SUSPECT:
            return await self._granted(run, generation, started, problem)
        logger.warning(
            "job may have killed its workers; it runs beside no other such job", extra={"job_id": job.id}
        )
        self._slots.leave(run)
        async with self._suspects:
            if not await self._slots.take(run):
                return Defer()
            started = await self._start(run, resumable=resumable, alone=True)
            return await self._granted(run, generation, started, problem)

    def _problem(self, job: Job) -> Failure | None:
        """Say why this worker cannot answer the request, whoever tries."""
        try:
            check_request(job.endpoint, job.body, max_body_bytes=MAX_BODY_BYTES)
        except InvalidJobError as error:
            return Failure(code=FailureCode.INVALID_REQUEST, message=str(error)[:4096])
        if job.endpoint not in self._engine.endpoints:
            offered = ", ".join(sorted(self._engine.endpoints))
            message = (
                f"endpoint: the model {self._engine.model!r} of pool {self._settings.pool!r} "
                f"does not answer {job.endpoint}, but {offered}"
            )
            return Failure(code=FailureCode.INVALID_REQUEST, message=message)
        return None

    def _resumable(self, generation: Generation) -> bool:
        try:
            return self._engine.resumable(generation)
        except Exception:
            # Before the start nothing is counted: raised here, it would bring the job back for ever.
            logger.exception("cannot tell whether a job can be resumed", extra={"job_id": generation.id})
            return False

    async def _start(self, run: JobRun, *, resumable: bool, alone: bool) -> Started:
        started = await self._records.start(
            run.job,
            token=f"{self._incarnation}:{next(self._starts)}",
            worker_id=self._settings.worker_id,
            lease_s=self._settings.lease_s,
            resumable=resumable,
            alone=alone,
            reply_to=run.delivery.reply_to,
            model_identity=self._model_identity,
        )
        run.start(
            fence=started.fence,
            charged=started.charged,
            reply_to=started.reply_to,
            model_identity=started.model_identity,
        )
        return started

    @cached_property
    def _model_identity(self) -> str:
        identity = self._engine.identity
        if identity is None:
            raise EngineDeadError("the engine has no model")
        return identity.short

    async def _granted(
        self, run: JobRun, generation: Generation, started: Started, problem: Failure | None
    ) -> Outcome:
        job = run.job
        refused = self._refused(job, started)
        match refused:
            case Finish() | DeadLetter():
                await self._recall(run, started)
                return await self._turns.unless_answered(run, refused)
            case None:
                pass
            case _:
                return refused
        if problem is not None:
            await self._recall(run, started)
            return Finish(JobState.FAILED, failure=problem)
        restart = started.restart
        if started.tokens and restart is None:
            chunks = await self._records.whole_answer(job.id, tokens=started.tokens)
            if chunks is None:
                restart = RestartReason.JOURNAL_INCOMPLETE
            else:
                run.resume(chunks)
        # Before the restart: a turn that an earlier attempt has completed keeps the tokens that it has.
        if restart is not None and job.session_id is not None:
            await self._recall(run, started)
        body = await self._turns.begin(run)
        if isinstance(body, dict) and restart is not None:
            run.resume(())
            if not await self._restart(run, restart, tokens_wasted=started.tokens):
                return Defer()
            # The session has to know the new fence.
            body = await self._turns.begin(run)
        if not isinstance(body, dict):
            return body
        if started.verdict is Verdict.INTERRUPTED:
            if restart is None:
                await self._recall(run, started)
            return await self._turns.interrupt(run, _cancelled("interrupted by the session's next turn"))
        self._journal.follow(run)
        if self._settings.log_prompts:
            logger.info("job starts", extra={"job_id": job.id, "body": body})
        if body is not job.body or run.journaled:
            generation = replace(
                generation,
                body=body,
                resume_token_ids=run.resume_token_ids,
                resume_chunks=run.journaled,
            )
        return await self._generate(run, generation)

    async def _restart(self, run: JobRun, reason: RestartReason, *, tokens_wasted: int) -> bool:
        """Begin the answer again. False if another attempt has the job."""
        identity, fence = self._model_identity, run.fence
        run.restart(model_identity=identity)
        written = await self._journal.write(
            run,
            lambda: self._records.restart(
                run.job.id,
                fence=fence,
                worker_id=self._settings.worker_id,
                model_identity=identity,
                reason=reason,
                tokens_wasted=tokens_wasted,
            ),
        )
        if written is Written.FENCED:
            return False
        self._metrics.wasted(tokens_wasted, reason)
        logger.warning(
            "the answer begins again", extra={"job_id": run.job.id, "reason": reason, "tokens": tokens_wasted}
        )
        return True

    def _refused(self, job: Job, started: Started) -> Outcome | None:
        """What to do when the start was not granted; ``None`` when it was."""
        match started.verdict:
            case Verdict.STARTED | Verdict.INTERRUPTED:
                return None
            case Verdict.DONE:
                return Drop()
            case Verdict.BUSY | Verdict.SUSPECT:
                return Defer(max(started.busy_s, DEFER_MIN_S))
            case Verdict.CANCELLED:
                return _cancelled("cancelled before it ran again")
            case Verdict.EXPIRED:
                return Finish(
                    JobState.EXPIRED,
                    failure=Failure(
                        code=FailureCode.EXPIRED,
                        message=f"not started before its expires_at, {job.expires_at}",
                    ),
                )
            case Verdict.EXHAUSTED:
                return DeadLetter(
                    Failure(
                        code=FailureCode.TOO_MANY_ATTEMPTS,
                        message=f"started {started.charged} times without an end: its workers died",
                    )
                )
            case _:
                assert_never(started.verdict)

    async def _generate(self, run: JobRun, generation: Generation) -> Outcome:
        completion: Completion | None = None
        try:
            async with run.interruptible(), aclosing(self._engine.generate(generation)) as events:
                async for event in events:
                    match event:
                        case TokenChunk():
                            if run.first_token_s is None:
                                self._journal.begin(run)
                            run.add(event)
                            self._metrics.generated(len(event.token_ids))
                        case Completion():
                            completion = event
        except NotContinuableError as error:
            return await self._start_again(run, generation, error)
        except GenerationError as error:
            return self._after(run, Failure(code=error.code, message=str(error)[:4096]))
        if completion is not None:
            return await self._turns.complete(run, completion)
        return await self._interrupted(run)

    async def _start_again(self, run: JobRun, generation: Generation, why: NotContinuableError) -> Outcome:
        """Begin the answer again, as the engine cannot go on with it after all."""
        logger.warning("%s", why, extra={"job_id": run.job.id})
        tokens = run.tokens
        self._journal.release(run)
        run.resume(())
        if not await self._restart(run, RestartReason.NOT_RESUMABLE, tokens_wasted=tokens):
            return Defer()
        # The session has to know the new fence.
        body = await self._turns.begin(run)
        if not isinstance(body, dict):
            return body
        self._journal.follow(run)
        return await self._generate(
            run, replace(generation, body=body, resume_token_ids=(), resume_chunks=())
        )

    async def _recall(self, run: JobRun, started: Started) -> None:
        """Learn what an answer that will not go on has said, since its result says so, too."""
        if started.tokens:
            entries = await self._records.journal(run.job.id)
            run.resume(generated(entries), head_of(entries))

    async def _interrupted(self, run: JobRun) -> Outcome:
        match run.interruption:
            case Interruption.TIMEOUT:
                message = f"still running after its timeout_s of {run.job.timeout_s:g} s"
                return Finish(JobState.FAILED, failure=Failure(code=FailureCode.TIMEOUT, message=message))
            case Interruption.CANCELLED:
                return _cancelled("cancelled while it ran")
            case Interruption.INTERRUPTED:
                return await self._turns.interrupt(run, _cancelled("interrupted by the session's next turn"))
            case Interruption.HAND_OVER:
                return HandOver(refund=True)
            case Interruption.SUPERSEDED:
                self._metrics.wasted(run.tokens_refused + run.take_unflushed().count, "fenced")
                return Defer()
            case None:
                message = "the engine ended the answer without completing it"
                return self._after(run, Failure(code=FailureCode.ENGINE_ERROR, message=message))
            case _:
                assert_never(run.interruption)

    def _after(self, run: JobRun, failure: Failure) -> Outcome:
        return after_failure(
            failure,
            attempts=run.charged,
            max_attempts=run.job.max_attempts,
            policy=self._policy,
            chance=self._chance,
        )


def _generation(run: JobRun) -> Generation:
    job, headers = run.job, run.delivery.headers
    return Generation(
        id=job.id,
        endpoint=job.endpoint,
        body=job.body,
        priority=job.priority,
        tenant=job.tenant,
        on_prompt=run.read_prompt,
        trace_headers={name: str(headers[name]) for name in TRACE_HEADERS if name in headers},
    )


def _cancelled(message: str) -> Finish:
    return Finish(JobState.CANCELLED, failure=Failure(code=FailureCode.CANCELLED, message=message))
