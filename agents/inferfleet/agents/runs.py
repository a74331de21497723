"""The client of agents' runs: starts them, waits for them, and answers what they ask."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import ValidationError

from inferfleet.agents.events import RunEvents
from inferfleet.agents.history import ANSWER_PREFIX, CANCEL, CHILD_PREFIX, Call, History, kept_steps
from inferfleet.producer import Fleet
from inferfleet.producer.job_making import check_pool, read_priority
from inferfleet.producer.tracing import current_trace
from inferfleet.schemas.errors import (
    IdempotencyConflictError,
    InvalidJobError,
    RunError,
    RunNotFoundError,
    UnknownPoolError,
    WaitTimeoutError,
)
from inferfleet.schemas.job import DEFAULT_TENANT, Priority, new_job_id
from inferfleet.schemas.limits import wait_limit
from inferfleet.schemas.names import run_queue
from inferfleet.schemas.problems import describe
from inferfleet.schemas.run import (
    DEFAULT_AGENT_QUEUE,
    Answer,
    QuestionAsked,
    QuestionKind,
    RunLimits,
    RunOrder,
    RunRecord,
    RunReplay,
    RunResult,
    RunState,
    RunSummary,
    Step,
    Verdict,
)
from inferfleet.wire.redis.replicas import Replicas
from inferfleet.wire.redis.runs import Runs

LOOK_S: Final = 30.0
"""How soon after a run was published a runner looks whether its message was lost."""

POLL_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""The pauses between two looks at a run that somebody waits for. The last one is repeated."""

READ_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Question:
    """What a run asks a person: may it make ``call`` of ``tool`` with these ``arguments``?"""

    id: str
    """What an answer names. If the run asks about the same call again, that is another question."""
    call: str
    tool: str
    arguments: str
    kind: QuestionKind
    until_ms: int | None


class AgentRuns:
    """Starts and follows runs of agents, through a client of the fleet. A runner tells their ``events``."""

    def __init__(self, fleet: Fleet, *, events: RunEvents | None = None) -> None:
        self._fleet = self.fleet = fleet
        """The client with which this talks to the fleet."""
        self._events = events
        self.records = Runs(
            fleet.pipeline,
            queued_ttl_s=fleet.settings.queued_ttl_s,
            result_ttl_s=fleet.settings.result_ttl_s,
        )
        """The records of runs, for the runner."""
        self._replicas = Replicas(fleet.pipeline, fleet.settings, patience_s=fleet.settings.patience_s)

    async def start(
        self,
        agent: str,
        input: str,  # noqa: A002 - what a run is given is its input
        *,
        queue: str = DEFAULT_AGENT_QUEUE,
        tenant: str = DEFAULT_TENANT,
        priority: int | str | None = None,
        limits: RunLimits | None = None,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Start a run of an agent, by its name, and return its id.

        Once this has returned, the run reaches exactly one end. With an idempotency key, the same run is
        started only once, however often this is called. ``limits`` can only lower those of the agent: members
        that are not set are the agent's. Without ``traceparent`` the run is in the current trace. A queue
        that does not exist is declared, and the run waits in it for a runner; ``require_queue`` checks first.

        Raises:
            InvalidJobError: The order is invalid.
            IdempotencyConflictError: The key belongs to a run with another order.
            ServiceUnreachableError, ServiceRefusedError, PublishUnconfirmedError: It is unknown whether the
                run was started. Starting it again with the same idempotency key is safe.

        """
        run_id = _new_id(tenant, idempotency_key)
        try:
            order = RunOrder(
                id=run_id,
                agent=agent,
                queue=queue,
                input=input,
                tenant=tenant,
                priority=None if priority is None else read_priority(str(priority)),
                limits=limits,
                created_ms=self.records.now_ms(),
                traceparent=traceparent or current_trace().get("traceparent"),
            )
        except ValidationError as error:
            raise InvalidJobError(f"invalid run: {describe(error, whole='the order')}") from error
        await self.submit(order)
        return run_id

    async def replay(
        self,
        run_id: str,
        *,
        from_step: int = 1,
        priority: int | None = None,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Start a run with the order of another one, and return its id.

        The ``from_step``-th call of the model is made anew, and what follows from it. What comes before is
        taken over with the results of its tool calls, none of which is made again, and counts in the limits
        of the new run. A child is replayed without its parent, and the limits that it had from there. With
        ``priority`` the new run has another one.

        Raises:
            RunNotFoundError: There is no such run.
            RunError: It has no such step, or a tool call before it has no result.
            IdempotencyConflictError, ServiceUnreachableError, …: As for ``start``.

        """
        old = (await self.get(run_id)).order
        kept = kept_steps(run_id, await self.records.steps(run_id), from_step) if from_step != 1 else []
        order = old.model_copy(
            update={
                "id": _new_id(old.tenant, idempotency_key),
                "replay": RunReplay(run_id=old.id, from_step=from_step),
                "priority": old.priority if priority is None else priority,
                "parent": None,
                "max_tokens": None,
                "max_cost": None,
                "deadline_ms": None,
                "prices": None,
                "created_ms": self.records.now_ms(),
                "traceparent": traceparent or current_trace().get("traceparent"),
            }
        )
        await self.submit(order, steps=kept)
        return order.id

    async def submit(
        self, order: RunOrder, *, publish_again: bool = True, steps: Sequence[Step] = ()
    ) -> None:
        """Record a run, then publish it, unless it is there and has a runner, waits or has ended.

        It begins with ``steps``. Without ``publish_again`` a run that is there is left to the sweep. Raises
        the same as ``start``.
        """
        if len(order.input.encode()) > self._fleet.settings.max_body_bytes:
            raise InvalidJobError(
                f"the input has {len(order.input.encode()):,} bytes, and INFERFLEET_MAX_BODY_BYTES is "
                f"{self._fleet.settings.max_body_bytes:,}"
            )
        known = await self._replicas.hold(
            partial(self.records.create, order, look_ms=self._soon_ms(), steps=steps)
        )
        if known is not None:
            same = {"created_ms": order.created_ms, "traceparent": order.traceparent}
            if known.model_copy(update=same) != order:
                raise IdempotencyConflictError(
                    f"run {order.id} was started before with another order (agent {known.agent!r}); use "
                    "another idempotency key"
                )
            if not publish_again or await self.records.state(order.id) is not RunState.QUEUED:
                return
        await self.publish(order)

    async def require_queue(self, queue: str) -> None:
        """Make sure that there is such a queue. ``start`` declares one that there is not.

        Raises:
            InvalidJobError: No queue may have this name.
            UnknownPoolError: There is none.

        """
        check_pool(queue)
        if await self._fleet.publisher.waiting(run_queue(queue)) is None:
            raise UnknownPoolError(
                f"there is no queue {queue!r} of runs: start a runner for it, "
                f"`inferfleet agent run MODULE:AGENT --queue {queue}`"
            )

    async def publish(self, order: RunOrder) -> None:
        """Publish a run that can go on."""
        priority = Priority.NORMAL if order.priority is None else order.priority
        await self._fleet.publisher.publish_run(order.id, queue=order.queue, priority=priority)

    async def get(self, run_id: str) -> RunRecord:
        """Read a run's record.

        Raises:
            RunNotFoundError: There is no such run.

        """
        record = await self.records.read(_checked(run_id))
        if record is None:
            raise RunNotFoundError(run_id)
        return record

    async def steps(self, run_id: str) -> list[Step]:
        """Read a run's steps, in order.

        Raises:
            RunNotFoundError: There is no such run.

        """
        await self.get(run_id)
        return await self.records.steps(run_id)

    async def list(self, queue: str = DEFAULT_AGENT_QUEUE, *, limit: int = 1000) -> list[RunSummary]:
        """List a queue's unfinished runs, ``limit`` at most, without what was ordered.

        Raises:
            InvalidJobError: No queue may have this name.

        """
        check_pool(queue)
        ids = await self.records.open(queue)
        found: list[RunSummary] = []
        while ids and len(found) < limit:
            some, ids = ids[:READ_AT_ONCE], ids[READ_AT_ONCE:]
            summaries = await asyncio.gather(*map(self.records.summary, some))
            found += [each for each in summaries if each is not None and not each.state.terminal]
        return found[:limit]

    async def result(self, run_id: str, *, timeout_s: float | None = None) -> RunResult:
        """Wait for the end of a run. The run continues if the wait is cancelled or times out.

        Raises:
            RunNotFoundError: There is no such run.
            WaitTimeoutError: It did not end within ``timeout_s``.

        """
        limit_s = wait_limit(timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                for pause_s in itertools.chain(POLL_S, itertools.repeat(POLL_S[-1])):
                    record = await self.get(run_id)
                    if record.result is not None:
                        return record.result
                    await asyncio.sleep(pause_s)
        except TimeoutError as error:
            raise WaitTimeoutError(f"run {run_id} did not end within {limit_s:g} s; it continues") from error
        raise AssertionError("there is always another pause")

    async def cancel(self, run_id: str) -> RunState:
        """Ask for a run to be cancelled, with all that it has started. Return its state.

        A runner cancels it; until then it is unfinished. A run that has ended keeps its state.

        Raises:
            RunNotFoundError: There is no such run.

        """
        return await self.tell((await self.get(run_id)).order, CANCEL, "")

    async def questions(self, run_id: str) -> Sequence[Question]:
        """Return what a run asks a person now.

        Raises:
            RunNotFoundError: There is no such run.

        """
        _, questions = await self.steps_and_questions(await self.get(run_id))
        return questions

    async def steps_and_questions(self, record: RunRecord) -> tuple[Sequence[Step], Sequence[Question]]:
        """Read the steps of a run, in order, and what it asks a person after them."""
        steps = await self.records.steps(record.order.id)
        if record.state.terminal:
            return steps, []
        asked = [
            _question(call, call.last)
            for call in History(RunLimits(), steps).open_calls()
            if isinstance(call.last, QuestionAsked)
        ]
        answered = await self.records.inbox(record.order.id)
        return steps, [each for each in asked if f"{ANSWER_PREFIX}{each.id}" not in answered]

    async def approve(self, run_id: str, question: str, *, result: str | None = None) -> None:
        """Let a run make a tool call that waits for approval, or again a call whose outcome is unknown.

        ``question`` is the id of one that the run asks. With ``result`` the call is not made, and the model
        reads this instead. Of several answers to a question the first counts. The same answer may be
        repeated, also when the run has gone on: it answers no other question.

        Raises:
            RunNotFoundError: There is no such run.
            RunError: The run does not ask this, and never got this answer to it; the message says what it
                asks.

        """
        answer = (
            Answer(verdict=Verdict.APPROVE) if result is None else Answer(verdict=Verdict.RESULT, note=result)
        )
        await self._answer(run_id, question, answer)

    async def deny(self, run_id: str, question: str, *, reason: str = "") -> None:
        """Let a run not make a tool call; the model reads the reason. The rest is as for ``approve``."""
        await self._answer(run_id, question, Answer(verdict=Verdict.DENY, note=reason))

    async def tell(self, order: RunOrder, name: str, message: str) -> RunState:
        """Tell a run something, and publish it if it can go on. Return its state.

        Told the same again, it is not published, however often: a sweep looks whether its message was lost.

        Raises:
            RunNotFoundError: There is no such run.

        """
        told = await self.records.tell(order.id, name, message)
        if told is None:
            raise RunNotFoundError(order.id)
        state, news = told
        if state is RunState.QUEUED:
            at_ms = self._soon_ms() if news else self.records.now_ms()
            await self.records.look_at(order.queue, order.id, at_ms=at_ms)
            if news:
                await self.publish(order)
        return state

    async def conclude(self, order: RunOrder, result: RunResult) -> None:
        """Tell whom it concerns that a run has ended, and take it from the list. Safe to repeat."""
        if order.parent is not None:
            parent = await self.records.read(order.parent.run_id)
            if parent is not None:
                await self.tell(parent.order, f"{CHILD_PREFIX}{order.id}", result.model_dump_json())
        elif self._events is not None:
            await self._events.tell(order, result.state)
        await self.records.close(order.queue, order.id)

    async def waits(self, order: RunOrder, question: str) -> None:
        """Tell that a run waits for a person, whom it asks this newest question."""
        if self._events is not None:
            await self._events.tell(order, RunState.WAITING, question=question)

    async def _answer(self, run_id: str, question: str, answer: Answer) -> None:
        record = await self.get(run_id)
        name, message = f"{ANSWER_PREFIX}{question}", answer.model_dump_json()
        if name not in await self.records.inbox(run_id):
            _, asked = await self.steps_and_questions(record)
            if question not in {each.id for each in asked}:
                known = ", ".join(f"{each.id} ({each.tool})" for each in asked) or "nothing"
                raise RunError(
                    f"run {run_id} ({record.state}) does not ask {question[:64]!r}; it asks {known}"
                )
        await self.tell(record.order, name, message)
        counts = (await self.records.inbox(run_id)).get(name)
        if counts is None:
            raise RunError(f"run {run_id} has ended before it was told the answer to {question!r}")
        if counts.decode() != message:
            verdict = Answer.model_validate_json(counts).verdict
            raise RunError(f"question {question!r} of run {run_id} has got another answer: {verdict}")

    def _soon_ms(self) -> int:
        return self.records.now_ms() + int(LOOK_S * 1000)


def _new_id(tenant: str, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return new_job_id()
    if not 1 <= len(idempotency_key) <= 255:
        raise InvalidJobError(
            f"idempotency_key: has {len(idempotency_key)} characters; it must have 1 to 255"
        )
    return str(uuid5(NAMESPACE_URL, f"inferfleet:run:{tenant}:{idempotency_key}"))


def _checked(run_id: str) -> str:
    with contextlib.suppress(ValueError):
        return str(UUID(run_id))
    raise RunNotFoundError(run_id)


def _question(call: Call, asked: QuestionAsked) -> Question:
    return Question(
        id=call.question_id,
        call=call.key,
        tool=call.name,
        arguments=call.arguments,
        kind=asked.question,
        until_ms=asked.until_ms,
    )
