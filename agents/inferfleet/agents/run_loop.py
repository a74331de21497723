"""Brings one run forward: asks the model, makes its tool calls, asks it again, until it ends or waits.

It may be interrupted at any moment. Whoever claims the run next reads its steps, and goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, assert_never
from uuid import UUID, uuid5

from pydantic_core import to_json

from inferfleet.agents.agent import Agent, Decision, described
from inferfleet.agents.calls import CallMaker
from inferfleet.agents.ending import conclude, fail, result_of
from inferfleet.agents.held_run import HeldRun
from inferfleet.agents.history import AskModel, Call, Finish, MakeCalls
from inferfleet.agents.runs import AgentRuns
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import (
    IdempotencyConflictError,
    InvalidJobError,
    JobDataLostError,
    JobNotFoundError,
    UnknownPoolError,
)
from inferfleet.schemas.job import JobState
from inferfleet.schemas.result import Result
from inferfleet.schemas.run import (
    ModelAnswered,
    ModelCalled,
    QuestionAsked,
    RunFailure,
    RunFailureCode,
    RunResult,
    RunState,
    RunWait,
)
from inferfleet.wire.tasks import cancel_and_wait

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """The run has ended."""

    result: RunResult


class Waits:
    """The run waits for a person or a child, and whoever ends that publishes it."""


class HandedOver:
    """The runner stops, and the run goes on elsewhere."""


Outcome = Ended | Waits | HandedOver


class _FailedError(Exception):
    """The run fails."""

    def __init__(self, failure: RunFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class RunLoop:
    """Brings a run forward that this runner holds."""

    def __init__(
        self, held: HeldRun, agent: Agent, *, fleet: Fleet, runs: AgentRuns, stopping: asyncio.Event
    ) -> None:
        self._held = held
        self._agent = agent
        self._fleet = fleet
        self._runs = runs
        self._stopping = stopping
        order = held.order
        self._priority = agent.priority if order.priority is None else order.priority
        self._calls = CallMaker(held, agent, runs, priority=self._priority)

    async def run(self) -> Outcome:
        """Bring the run forward as far as possible, and settle it.

        Raises:
            RunLostError: Another runner has the run.
            InferfleetError: A service failed; the run is still held.

        """
        left_s = max(0.0, (self._held.deadline_ms - self._held.records.now_ms()) / 1000)
        working = asyncio.create_task(self._work())
        keeping = asyncio.create_task(self._held.keep())
        cancelled = asyncio.create_task(self._held.cancelled.wait())
        try:
            await asyncio.wait(
                [working, keeping, cancelled], timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            if keeping.done():
                keeping.result()
            if self._held.cancelled.is_set():
                failure = RunFailure(code=RunFailureCode.CANCELLED, message="the run was cancelled")
                return await self._fail(failure, stop=working)
            if not working.done():
                limit = f"timeout_s={self._held.limits.timeout_s:g}"
                if self._held.deadline_ms == self._held.order.deadline_ms:
                    limit = "what its parent had left of its timeout_s"
                failure = RunFailure(
                    code=RunFailureCode.TIMEOUT, message=f"the run has not ended within {limit}"
                )
                return await self._fail(failure, stop=working)
            try:
                outcome = working.result()
            except _FailedError as error:
                return await self._fail(error.failure, stop=working)
            if isinstance(outcome, HandedOver):
                await self._held.release()
            if isinstance(outcome, Ended):
                await conclude(self._held, outcome.result, runs=self._runs)
            return outcome
        finally:
            await cancel_and_wait(working, keeping, cancelled)

    async def _work(self) -> Outcome:
        while not self._stopping.is_set():
            match following := self._held.history.next():
                case AskModel(None) if (decided := self._decided()) is not None:
                    await self._held.append(ModelAnswered(message=decided, tokens=0))
                case AskModel():
                    if not await self._ask_model(following.job_id):
                        break
                case MakeCalls(calls):
                    await _all([self._calls.advance(call) for call in calls])
                    waiting = self._held.history.open_calls()
                    asks = any(isinstance(call.last, QuestionAsked) for call in waiting)
                    if asks:
                        await self._announce()
                    waits_for = RunWait.PERSON if asks else RunWait.CHILD
                    if waiting and await self._held.wait(waits_for, wake_ms=self._wake_ms(waiting)):
                        return Waits()
                    if waiting:
                        await self._held.read_inbox()
                case Finish(text, cut_off):
                    return Ended(result_of(self._held, RunState.SUCCEEDED, text=text, cut_off=cut_off))
                case RunFailure():
                    raise _FailedError(following)
                case _:
                    assert_never(following)
        return HandedOver()

    async def _announce(self) -> None:
        """Tell that the run waits for a person, once for each time that it has new questions."""
        held, newest = self._held, self._held.history.newest_question
        if newest != held.announced:
            # Before it waits: if the runner dies in between, the next one tells the same event again.
            await self._runs.waits(held.order, newest)
            held.announced = newest

    def _decided(self) -> dict[str, Any] | None:
        """Return what the agent's code answers in the model's place; ``None`` if the model has to."""
        if self._agent.decide is None:
            return None
        try:
            return _message_of(self._agent.decide(self._messages()), number=self._held.history.answers)
        except Exception as error:
            why = f"decide of agent {self._agent.name} raised {type(error).__name__}: {error}"
            raise _FailedError(RunFailure(code=RunFailureCode.INTERNAL, message=why)) from error

    async def _ask_model(self, job_id: str | None) -> bool:
        """Get the model's next answer. Return false if the runner stops before it is there."""
        held, history = self._held, self._held.history
        if job_id is None:
            job_id = str(uuid5(UUID(held.order.id), f"job:{history.jobs}"))
            await held.append(ModelCalled(job_id=job_id))
        try:
            await self._submit(job_id)
            result = await self._unless_stopping(self._fleet.wait(job_id))
        except (InvalidJobError, UnknownPoolError) as error:
            raise _FailedError(
                RunFailure(code=RunFailureCode.MODEL_FAILED, message=f"cannot ask the model: {error}")
            ) from error
        except (JobNotFoundError, JobDataLostError) as error:
            logger.warning("run %s asks the model again: %s", held.order.id, error)
            return await self._ask_model(None)
        if result is None:
            return False
        if result.state is not JobState.SUCCEEDED or result.response is None:
            why = f"{result.error.code}: {result.error.message}" if result.error else "no reason was recorded"
            raise _FailedError(
                RunFailure(code=RunFailureCode.MODEL_FAILED, message=f"job {job_id} {result.state}: {why}")
            )
        choice, prices = result.response["choices"][0], held.limits.prices
        await held.append(
            ModelAnswered(
                message=choice["message"],
                tokens=result.usage.total_tokens,
                cost=None if prices is None else prices.cost_of(result.usage),
                cut_off=choice.get("finish_reason") == "length",
            )
        )
        return True

    async def _submit(self, job_id: str) -> None:
        """Submit the job that asks the model, or the same one again."""
        order = self._held.order
        body: dict[str, Any] = {
            **self._agent.options,
            "messages": self._messages(),
        }
        if self._agent.tools:
            body["tools"] = described(self._agent.tools)
        # It was submitted with other instructions or tools, if the agent was changed: that request counts.
        with suppress(IdempotencyConflictError):
            await self._fleet.submit(
                body,
                id=job_id,
                idempotency_key=f"run:{order.id}:{self._held.history.jobs}",
                pool=self._agent.pool,
                priority=self._priority,
                tenant=order.tenant,
                traceparent=self._held.traceparent,
            )

    def _messages(self) -> list[dict[str, Any]]:
        return self._held.history.messages(
            instructions=self._agent.instructions, question=self._held.order.input
        )

    async def _unless_stopping(self, waiting: Coroutine[Any, Any, Result]) -> Result | None:
        waits, stops = asyncio.create_task(waiting), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([waits, stops], return_when=asyncio.FIRST_COMPLETED)
            return waits.result() if waits.done() else None
        finally:
            await cancel_and_wait(waits, stops)

    def _wake_ms(self, waiting: list[Call]) -> int:
        """Return when the run goes on although nobody has told it anything."""
        until = [call.last.until_ms for call in waiting if isinstance(call.last, QuestionAsked)]
        return min([self._held.deadline_ms, *(each for each in until if each is not None)])

    async def _fail(self, failure: RunFailure, *, stop: asyncio.Task[Outcome]) -> Ended:
        await cancel_and_wait(stop)
        return Ended(await fail(self._held, failure, fleet=self._fleet, runs=self._runs))


def _message_of(decision: Decision, *, number: int) -> dict[str, Any] | None:
    """Return a decision as a message of a model, its ``number``-th."""
    if decision is None:
        return None
    if isinstance(decision, str):
        return {"role": "assistant", "content": decision}
    if not decision:
        raise ValueError("it returned no tool calls: return a text to end the run, or None to ask the model")
    calls = [
        {
            "id": f"call-{number}-{place}",
            "type": "function",
            "function": {"name": name, "arguments": to_json(arguments).decode()},
        }
        for place, (name, arguments) in enumerate(decision)
    ]
    # Some chat templates cannot render a message without a text.
    return {"role": "assistant", "content": "", "tool_calls": calls}


async def _all(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at the same time, until all have ended or one has failed."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await cancel_and_wait(*tasks)
