"""Makes the tool calls of one run, each from where it stands.

A step is recorded before a tool is called and after it has ended. So whoever takes over a run knows which
calls have a result, which were not made, and of which nobody knows the outcome.
"""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid5

import orjson

from inferfleet.agents.agent import Agent, AgentTool
from inferfleet.agents.held_run import HeldRun
from inferfleet.agents.history import ANSWER_PREFIX, CHILD_PREFIX, Call
from inferfleet.agents.runs import AgentRuns
from inferfleet.agents.tool import Tool, ToolContext, ToolOutcome
from inferfleet.producer.tracing import in_trace
from inferfleet.schemas.errors import IdempotencyConflictError, InvalidJobError
from inferfleet.schemas.run import (
    Answer,
    CallStep,
    ChildStarted,
    QuestionAnswered,
    QuestionAsked,
    QuestionKind,
    RunOrder,
    RunParent,
    RunResult,
    RunState,
    ToolEnded,
    ToolStarted,
    Verdict,
)

NOBODY: Final = Answer(verdict=Verdict.DENY, note="nobody has answered in time")


class CallMaker:
    """Makes the tool calls of one run of an agent, which this runner holds."""

    def __init__(self, held: HeldRun, agent: Agent, runs: AgentRuns, *, priority: int) -> None:
        self._held = held
        self._agent = agent
        self._runs = runs
        self._priority = priority

    async def advance(self, call: Call) -> None:
        """Bring a call to its result, or to where it waits for a person or a child.

        Raises:
            RunLostError: Another runner has the run.
            InferfleetError: A service failed.

        """
        found = self._agent.tool(call.name)
        if found is None:
            names = ", ".join(each.name for each in self._agent.tools) or "none"
            await self._end(call, ToolOutcome(f"error: there is no tool {call.name!r}; tools: {names}", True))
        elif call.last is None and call.cut_off:
            told = "error: your answer was cut off by its limit of tokens, so this call was not made"
            await self._end(call, ToolOutcome(f"{told}. Make it shorter", failed=True))
        elif call.last is None and self._held.history.repeated_too_often:
            times = self._held.history.repeats
            told = f"error: this is the same call as in your last {times - 1} answers, so it was not made"
            await self._end(call, ToolOutcome(f"{told}. Answer, or do something else", failed=True))
        elif isinstance(found, AgentTool):
            await self._advance_child(call, found)
        else:
            await self._advance_tool(call, found)

    async def _advance_tool(self, call: Call, tool: Tool) -> None:
        if call.last is None and tool.needs_approval:
            await self._ask(call, QuestionKind.APPROVAL, tool.approval_timeout_s)
        elif isinstance(call.last, ToolStarted) and not tool.repeatable:
            await self._ask(call, QuestionKind.UNKNOWN_OUTCOME, tool.approval_timeout_s)
        if isinstance(call.last, QuestionAsked):
            answer = self._answer(call, call.last)
            if answer is None:
                return
            await self._held.append(QuestionAnswered(call=call.key, answer=answer))
        # A variable, because the type of an attribute is narrowed for good.
        last: CallStep | None = call.last
        match last:
            case QuestionAnswered(answer=Answer(verdict=Verdict.DENY, note=note)):
                why = f": {note}" if note else ""
                await self._end(call, ToolOutcome(f"error: this call was denied{why}", failed=True))
            case QuestionAnswered(answer=Answer(verdict=Verdict.RESULT, note=note)):
                await self._end(call, ToolOutcome(note))
            case _:
                await self._held.append(ToolStarted(call=call.key))
                if not tool.repeatable:
                    await self._held.make_safe()
                begun = time.monotonic()
                with in_trace(self._held.traceparent):
                    outcome = await tool.call(call.arguments, self._context(call))
                self._held.metrics.tool_called(tool, outcome, seconds=time.monotonic() - begun)
                await self._end(call, outcome)

    async def _advance_child(self, call: Call, tool: AgentTool) -> None:
        if call.last is None:
            question = _input_of(call.arguments)
            if question is None:
                wrong = 'error: the arguments must be an object with one string, "input"'
                await self._end(call, ToolOutcome(wrong, failed=True))
                return
            run_id = str(uuid5(UUID(self._held.order.id), call.key))
            await self._held.append(ChildStarted(call=call.key, run_id=run_id))
        if not isinstance(call.last, ChildStarted):
            return
        ended = self._held.inbox.get(f"{CHILD_PREFIX}{call.last.run_id}")
        if ended is None:
            await self._start_child(call, call.last.run_id, tool)
            return
        result = RunResult.model_validate_json(ended)
        outcome = ToolOutcome(result.text)
        if result.state is not RunState.SUCCEEDED:
            why = result.error.message if result.error else result.state
            outcome = ToolOutcome(f"error: the agent {tool.agent.name} {result.state}: {why}", failed=True)
        await self._end(call, outcome, tokens=result.tokens, cost=result.cost)

    async def _start_child(self, call: Call, run_id: str, tool: AgentTool) -> None:
        """Start a child. Whoever had the run before may have started it, with more left of the limits."""
        order, limits, history = self._held.order, self._held.limits, self._held.history
        left = None if limits.max_tokens is None else max(1, limits.max_tokens - history.tokens)
        cost_left = None
        if limits.max_cost is not None:
            cost_left = max(Decimal(), limits.max_cost - (history.cost or Decimal()))
        child = RunOrder(
            id=run_id,
            agent=tool.agent.name,
            queue=order.queue,
            input=_input_of(call.arguments) or "",
            tenant=order.tenant,
            priority=min(self._priority, tool.agent.priority),
            max_tokens=left,
            max_cost=cost_left,
            deadline_ms=self._held.deadline_ms,
            prices=limits.prices,
            parent=RunParent(run_id=order.id, call=call.key),
            created_ms=self._held.records.now_ms(),
            traceparent=self._held.traceparent,
        )
        try:
            await self._runs.submit(child, publish_again=False)
        except IdempotencyConflictError:
            pass
        except InvalidJobError as error:
            await self._end(call, ToolOutcome(f"error: {error}", failed=True))

    async def _ask(self, call: Call, question: QuestionKind, timeout_s: float | None) -> None:
        until_ms = None if timeout_s is None else self._held.records.now_ms() + int(timeout_s * 1000)
        await self._held.append(QuestionAsked(call=call.key, question=question, until_ms=until_ms))

    def _answer(self, call: Call, asked: QuestionAsked) -> Answer | None:
        if (given := self._held.inbox.get(f"{ANSWER_PREFIX}{call.question_id}")) is not None:
            return Answer.model_validate_json(given)
        overdue = asked.until_ms is not None and asked.until_ms <= self._held.records.now_ms()
        return NOBODY if overdue else None

    async def _end(
        self, call: Call, outcome: ToolOutcome, *, tokens: int = 0, cost: Decimal | None = None
    ) -> None:
        await self._held.append(
            ToolEnded(call=call.key, content=outcome.content, failed=outcome.failed, tokens=tokens, cost=cost)
        )

    def _context(self, call: Call) -> ToolContext:
        order = self._held.order
        return ToolContext(
            run_id=order.id,
            call=call.key,
            tenant=order.tenant,
            idempotency_key=f"run:{order.id}:{call.key}",
            fleet=self._runs.fleet,
        )


def _input_of(arguments: str) -> str | None:
    try:
        given: Any = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return None
    match given:
        case {"input": str(question)}:
            return question
        case _:
            return None
