"""The life of one attempt: check, claim, prepare, generate, conclude, settle. Read ``run`` and ``_outcome``.

Each stage gives what the next one needs, or the ``Outcome`` that ends the attempt.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import assert_never

from inferfleet.schemas import Failure, FailureCode, Job, JobState
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.journal import RestartReason, TokenChunk
from inferfleet.schemas.request import check_request
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.attempts import Started, Verdict, Written
from inferfleet.wire.redis.journal_lines import generated, head_of
from inferfleet.wire.redis.records import JobRecords
from inferfleet.worker.broker import Delivery
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.journal import JournalWriter
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
from inferfleet.worker.stop_switch import Interruption
from inferfleet.worker.turns import Prompt, Turns

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024 * 1024
"""What a worker accepts at most: RabbitMQ's own limit. The producers' limit is a setting of theirs."""

DEFER_MIN_S = 0.05
"""A message that has to wait comes again no sooner than this, so that it does not spin."""

TRACE_HEADERS = ("traceparent", "tracestate")


class Attempts:
    """Makes attempts: each answers one job, or finds out why not. Many run at the same time."""

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
        hooks: Hooks,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._records = records
        self._journal = journal
        self._turns = turns
        self._settlement = settlement
        self._slots = slots
        self._hooks = hooks
        self._policy = RetryPolicy(base_s=settings.retry_base_s, cap_s=settings.retry_cap_s)
        self._rng = random.Random()  # noqa: S311 - jitter, not secrets
        self._incarnation = f"{settings.worker_id}:{os.urandom(4).hex()}"
        self._starts = count()
        self._suspects = asyncio.Lock()

    async def run(self, run: JobRun) -> tuple[Delivery, Delivery | None]:
        """Make one attempt, from the slot to the settled message.

        Returns the delivery that was settled, and the same if it carries another job now.

        Raises:
            EngineDeadError: The job is back in the queue; this process should end.

        """
        engine_died: EngineDeadError | None = None
        try:
            outcome = await self._outcome(run)
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
            if run.runs_alone:
                self._suspects.release()
        delivery = run.delivery
        carrying = await self._settlement.settle(run, delivery, outcome)
        if engine_died is not None:
            raise engine_died
        return delivery, carrying

    async def _outcome(self, run: JobRun) -> Outcome:
        generation = _generation(run)
        # Checked before the engine sees it, carried out once the job is ours.
        problem = self._check(run.job)
        match await self._claim(run, resumable=problem is None and self._resumable(generation)):
            case Started() as started:
                pass
            case outcome:
                return outcome
        if problem is not None:
            await self._recall(run, started)
            return Finish(JobState.FAILED, failure=problem)
        match await self._prepare(run, started, generation):
            case Generation() as generation:
                pass
            case outcome:
                return outcome
        match await self._generate(run, generation):
            case Completion() as completion:
                return await self._turns.complete(run, completion)
            case outcome:
                return outcome

    # Check: can this worker answer the request, whoever tries?

    def _check(self, job: Job) -> Failure | None:
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

    # Claim: wait for a slot, then take the job's fence.

    async def _claim(self, run: JobRun, *, resumable: bool) -> Started | Outcome:
        if not self._slots.take_free(run):
            with run.delivery.waiting_for_slot():
                if not await self._slots.take(run):
                    return Defer()
        started = await self._start(run, resumable=resumable)
        if started.verdict is Verdict.SUSPECT:
            logger.warning(
                "job may have killed its workers; it runs beside no other such job",
                extra={"job_id": run.job.id},
            )
            self._slots.leave(run)
            await self._suspects.acquire()
            run.runs_alone = True
            if not await self._slots.take(run):
                return Defer()
            started = await self._start(run, resumable=resumable)
        match self._refused(run.job, started):
            case None:
                return started
            case Finish() | DeadLetter() as end:
                await self._recall(run, started)
                return await self._turns.unless_answered(run, end)
            case outcome:
                return outcome

    async def _start(self, run: JobRun, *, resumable: bool) -> Started:
        started = await self._records.start(
            run.job,
            token=f"{self._incarnation}:{next(self._starts)}",
            worker_id=self._settings.worker_id,
            lease_s=self._settings.lease_s,
            resumable=resumable,
            alone=run.runs_alone,
            reply_to=run.delivery.reply_to,
            model_identity=self._model_identity,
        )
        run.start(started)
        return started

    @cached_property
    def _model_identity(self) -> str:
        identity = self._engine.identity
        if identity is None:
            raise EngineDeadError("the engine has no model")
        return identity.short

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

    # Prepare: what earlier attempts have left, and the history of a session.

    async def _prepare(self, run: JobRun, started: Started, generation: Generation) -> Generation | Outcome:
        restart = started.restart
        if started.tokens and restart is None:
            chunks = await self._records.whole_answer(run.job.id, tokens=started.tokens)
            if chunks is None:
                restart = RestartReason.JOURNAL_INCOMPLETE
            else:
                run.answer.resume(chunks)
        # Before the restart: a turn that an earlier attempt has completed keeps the tokens that it has.
        if restart is not None and run.job.session_id is not None:
            await self._recall(run, started)
        begun = await self._turns.begin(run)
        if isinstance(begun, Prompt) and restart is not None:
            begun = await self._restart(run, restart, tokens_wasted=started.tokens)
        if not isinstance(begun, Prompt):
            return begun
        if started.verdict is Verdict.INTERRUPTED:
            if restart is None:
                await self._recall(run, started)
            return await self._turns.interrupt(run, _cancelled("interrupted by the session's next turn"))
        self._journal.follow(run)
        self._hooks.on_start(run, begun.body)
        if not run.answer.tokens and begun.body is run.job.body:
            return generation
        return replace(
            generation,
            body=begun.body,
            resume_token_ids=run.answer.token_ids,
            resume_chunks=run.answer.journaled,
        )

    async def _restart(self, run: JobRun, reason: RestartReason, *, tokens_wasted: int) -> Prompt | Outcome:
        """Begin the answer again, unless another attempt has the job."""
        identity, fence = self._model_identity, run.fence
        run.answer.resume(())
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
            return Defer()
        self._hooks.on_waste(run, tokens_wasted, reason)
        # The session has to know the new fence.
        return await self._turns.begin(run)

    async def _recall(self, run: JobRun, started: Started) -> None:
        """Learn what an answer that will not go on has said, since its result says so, too."""
        if started.tokens:
            entries = await self._records.journal(run.job.id)
            run.answer.resume(generated(entries), head_of(entries))

    # Generate.

    async def _generate(self, run: JobRun, generation: Generation) -> Completion | Outcome:
        completion: Completion | None = None
        switch = run.stop_switch.armed(run.job.timeout_s)
        try:
            async with switch, aclosing(self._engine.generate(generation)) as events:
                async for event in events:
                    match event:
                        case TokenChunk():
                            if run.first_token_s is None:
                                self._journal.begin(run)
                            run.add(event)
                            self._hooks.on_tokens(run, len(event.token_ids))
                        case Completion():
                            completion = event
        except NotContinuableError as error:
            return await self._generate_anew(run, generation, error)
        except GenerationError as error:
            return self._after(run, Failure(code=error.code, message=str(error)[:4096]))
        return completion if completion is not None else await self._interrupted(run)

    async def _generate_anew(
        self, run: JobRun, generation: Generation, why: NotContinuableError
    ) -> Completion | Outcome:
        """Begin the answer again, as the engine cannot go on with it after all."""
        logger.warning("%s", why, extra={"job_id": run.job.id})
        self._journal.release(run)
        begun = await self._restart(run, RestartReason.NOT_RESUMABLE, tokens_wasted=run.answer.tokens)
        if not isinstance(begun, Prompt):
            return begun
        self._journal.follow(run)
        return await self._generate(
            run, replace(generation, body=begun.body, resume_token_ids=(), resume_chunks=())
        )

    async def _interrupted(self, run: JobRun) -> Outcome:
        match run.stop_switch.reason:
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
                fresh = run.answer.take_unflushed().count
                self._hooks.on_waste(run, run.tokens_refused + fresh, "fenced")
                return Defer()
            case None:
                message = "the engine ended the answer without completing it"
                return self._after(run, Failure(code=FailureCode.ENGINE_ERROR, message=message))
            case _:
                assert_never(run.stop_switch.reason)

    def _after(self, run: JobRun, failure: Failure) -> Outcome:
        return after_failure(
            failure,
            attempts=run.charged,
            max_attempts=run.job.max_attempts,
            policy=self._policy,
            rng=self._rng,
        )


def _generation(run: JobRun) -> Generation:
    job, headers = run.job, run.delivery.headers
    return Generation(
        id=job.id,
        endpoint=job.endpoint,
        body=job.body,
        priority=job.priority,
        tenant=job.tenant,
        on_prompt=run.answer.read_prompt,
        trace_headers={name: str(headers[name]) for name in TRACE_HEADERS if name in headers},
    )


def _cancelled(message: str) -> Finish:
    return Finish(JobState.CANCELLED, failure=Failure(code=FailureCode.CANCELLED, message=message))
