"""The life of one attempt: check, claim, prepare, generate, conclude, settle. Read ``run`` and ``_outcome``.

Each stage returns what the next one needs, or the ``Outcome`` that ends the attempt.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from inferfleet.schemas import Failure, FailureCode, JobState
from inferfleet.schemas.journal import RestartReason, TokenChunk
from inferfleet.schemas.message import trace_headers
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.attempts import Started
from inferfleet.worker.broker import Delivery
from inferfleet.worker.claim import Claims
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.journal import JournalWriter
from inferfleet.worker.log import about
from inferfleet.worker.outcomes import (
    Defer,
    Finish,
    HandOver,
    Outcome,
    RetryPolicy,
    after_failure,
    cancelled,
)
from inferfleet.worker.ports import (
    Completion,
    EngineDeadError,
    Generation,
    GenerationError,
    NotContinuableError,
)
from inferfleet.worker.preparation import Preparation
from inferfleet.worker.replaceable_engine import ReplaceableEngine
from inferfleet.worker.settlement import Settlement
from inferfleet.worker.slots import Slots
from inferfleet.worker.stop_switch import Interruption
from inferfleet.worker.turns import Prompt, Turns

if TYPE_CHECKING:
    from inferfleet.worker.attempt_spans import AttemptSpans

logger = logging.getLogger(__name__)


class Attempts:
    """Makes attempts: each answers one job, or finds out why it cannot. Many run at the same time."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        engine: ReplaceableEngine,
        claims: Claims,
        preparation: Preparation,
        journal: JournalWriter,
        turns: Turns,
        settlement: Settlement,
        slots: Slots,
        hooks: Hooks,
        spans: AttemptSpans | None = None,
    ) -> None:
        self._engine = engine
        self._claims = claims
        self._preparation = preparation
        self._journal = journal
        self._turns = turns
        self._settlement = settlement
        self._slots = slots
        self._hooks = hooks
        self._spans = spans
        self._policy = RetryPolicy(base_s=settings.retry_base_s, cap_s=settings.retry_cap_s)
        self._rng = random.Random()  # noqa: S311 - jitter, not secrets

    async def run(self, run: JobRun) -> tuple[Delivery, Delivery | None]:
        """Make one attempt, from the slot to the settled message.

        Returns the settled delivery, and the delivery that carries another job now, if there is one.

        Raises:
            EngineDeadError: The engine died. The job is back in the queue, and this process should exit.

        """
        engine_died: EngineDeadError | None = None
        try:
            outcome = await self._outcome(run)
        except EngineDeadError as error:
            # The attempt is charged: a job that kills its engine must not do so for ever. Jobs that wait
            # for a slot did not cause it, and must not start on a dead engine.
            self._slots.close()
            engine_died = error
            outcome = HandOver(refund=False)
        except Exception as error:
            logger.exception("unexpected error in a job", extra=about(run.job, attempt=run.attempt))
            outcome = self._after(run, Failure(code=FailureCode.INTERNAL, message=type(error).__name__))
        finally:
            self._journal.release(run)
            self._claims.release(run)
        delivery = run.delivery
        try:
            carrying = await self._settlement.settle(run, delivery, outcome)
        except Exception as error:
            if engine_died is not None:
                # The broker delivers the message again when this process exits.
                raise engine_died from error
            raise
        if engine_died is not None:
            raise engine_died
        return delivery, carrying

    async def _outcome(self, run: JobRun) -> Outcome:
        generation = _generation(run)
        match await self._claims.claim(run, generation):
            case Started() as started:
                pass
            case outcome:
                return outcome
        if run.problem is not None:
            await self._preparation.recall(run, started)
            return self._after(run, run.problem)
        if run.identity is not None and run.identity.adapter:
            generation = replace(generation, adapter=run.identity.adapter)
        match await self._preparation.prepare(run, started, generation):
            case Generation() as generation:
                pass
            case outcome:
                return outcome
        if self._spans is not None and self._spans.traces(run):
            generation = replace(generation, trace_headers=self._spans.headers_for_engine(run))
        match await self._generate(run, generation):
            case Completion() as completion:
                return await self._turns.complete(run, completion)
            case outcome:
                return outcome

    async def _generate(self, run: JobRun, generation: Generation) -> Completion | Outcome:
        completion: Completion | None = None
        switch = run.stop_switch.armed(run.time_left_s)
        try:
            run.engine_began = time.monotonic()
            try:
                async with switch, aclosing(self._engine.of(run).generate(generation)) as events:
                    async for event in events:
                        match event:
                            case TokenChunk():
                                if run.first_token_s is None:
                                    self._journal.begin(run)
                                run.add(event)
                                self._hooks.on_tokens(run, len(event.token_ids))
                            case Completion():
                                completion = event
            finally:
                self._hooks.on_engine_end(run, run.leave_engine())
        except NotContinuableError as error:
            return await self._generate_anew(run, generation, error)
        except GenerationError as error:
            return self._after(run, Failure(code=error.code, message=str(error)[:4096]))
        finally:
            run.generated_s = time.monotonic() - run.started
        if completion is not None:
            return completion
        if run.stop_switch.preempted:
            return await self._resume_later(run, generation)
        return await self._interrupted(run)

    async def _resume_later(self, run: JobRun, generation: Generation) -> Completion | Outcome:
        """Give the slot to a more urgent job, and resume the answer once a slot is free.

        Meanwhile the attempt keeps its message, its lease and its engine.
        """
        run.preemptions += 1
        self._hooks.on_preempt(run)
        self._slots.leave(run)
        run.stop_switch.reset()
        await self._journal.preempted(run)
        resumes = False
        async with run.stop_switch.armed(None):
            resumes = await self._slots.take(run)
        if run.stop_switch.reason is not None:
            return await self._interrupted(run)
        if not resumes:
            # The worker drains, or the pool is paused.
            return HandOver(refund=True)
        await self._journal.resumed(run)
        return await self._generate(
            run,
            replace(generation, resume_token_ids=run.answer.token_ids, resume_chunks=run.answer.journaled),
        )

    async def _generate_anew(
        self, run: JobRun, generation: Generation, why: NotContinuableError
    ) -> Completion | Outcome:
        """Restart the answer, because the engine cannot resume it after all."""
        logger.warning("%s", why, extra=about(run.job, attempt=run.attempt))
        self._journal.release(run)
        begun = await self._preparation.restart(
            run, RestartReason.NOT_RESUMABLE, tokens_wasted=run.answer.tokens
        )
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
                return cancelled("cancelled while it ran")
            case Interruption.INTERRUPTED:
                return await self._turns.interrupt(run, cancelled("interrupted by the session's next turn"))
            case Interruption.HAND_OVER | Interruption.PREEMPTED:
                return HandOver(refund=True)
            case Interruption.SUPERSEDED:
                fresh = run.answer.take_pending().count
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
    job = run.job
    return Generation(
        id=job.id,
        endpoint=job.endpoint,
        body=job.body,
        priority=job.priority,
        tenant=job.tenant,
        on_prompt=run.answer.read_prompt,
        trace_headers=trace_headers(job),
    )
