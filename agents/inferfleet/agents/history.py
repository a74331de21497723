"""What the steps of a run say: its conversation, its tool calls, and what to do next.

Pure: nothing here reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, assert_never

import orjson

from inferfleet.schemas.errors import RunError
from inferfleet.schemas.prices import plain
from inferfleet.schemas.run import (
    CallStep,
    ChildStarted,
    ModelAnswered,
    ModelCalled,
    QuestionAnswered,
    QuestionAsked,
    RunFailure,
    RunFailureCode,
    RunLimits,
    Step,
    ToolEnded,
    ToolStarted,
)

CHILD_PREFIX = "child:"
ANSWER_PREFIX = "answer:"
CANCEL = "cancel"
"""The names in a run's inbox: the end of a child, the answer to a question, the order to cancel the run."""


@dataclass(slots=True)
class Call:
    """One tool call that the model has made. Its last step says where it stands; a new call has none."""

    key: str
    """``<number of the answer>.<number in it>``: ids of models may come twice."""
    id: str
    name: str
    arguments: str
    cut_off: bool = False
    """Whether the answer ended within it."""
    last: CallStep | None = None
    questions: int = 0
    """How many questions were asked about it."""

    @property
    def question_id(self) -> str:
        """What names its last question: no answer to an earlier one is taken for one to this."""
        return f"{self.key}:{self.questions}"


@dataclass(frozen=True, slots=True)
class AskModel:
    """The model has to answer. ``job_id`` is the job that was recorded for that, if there is one."""

    job_id: str | None


@dataclass(frozen=True, slots=True)
class MakeCalls:
    """These tool calls have no result yet."""

    calls: Sequence[Call]


@dataclass(frozen=True, slots=True)
class Finish:
    """The model has given its final answer. One that is ``cut_off`` has no end."""

    text: str
    cut_off: bool = False


Next = AskModel | MakeCalls | Finish | RunFailure


@dataclass(slots=True)
class _Turn:
    """An answer of the model with its tool calls."""

    message: dict[str, Any]
    cut_off: bool
    calls: list[Call] = field(default_factory=list[Call])

    @property
    def signature(self) -> list[tuple[str, str]]:
        return sorted((call.name, call.arguments) for call in self.calls)


class History:
    """The steps of a run, and what follows from them."""

    def __init__(self, limits: RunLimits, steps: Iterable[Step] = ()) -> None:
        self._limits = limits
        self._turns: list[_Turn] = []
        self._job_id: str | None = None
        self._calls: dict[str, Call] = {}
        self.steps = 0
        """How many steps there are."""
        self.jobs = 0
        """How many jobs were recorded."""
        self.newest_question = ""
        """The id of the question that was asked last."""
        self.tokens = 0
        """The tokens so far, with those of children that have ended."""
        self.cost: Decimal | None = None
        """What they cost; ``None`` while no price is known."""
        for step in steps:
            self.add(step)

    @property
    def answers(self) -> int:
        """How often the model has answered."""
        return len(self._turns)

    @property
    def job_id(self) -> str | None:
        """The job for whose answer the run waits."""
        return self._job_id

    def open_calls(self) -> list[Call]:
        """Return the tool calls that have no result yet."""
        calls = self._turns[-1].calls if self._turns else []
        return [call for call in calls if not isinstance(call.last, ToolEnded)]

    def add(self, step: Step) -> None:
        """Take the next step."""
        self.steps += 1
        self.cost = self.cost_with([step])
        match step:
            case ModelCalled(job_id=job_id):
                self._job_id = job_id
                self.jobs += 1
            case ModelAnswered():
                self._job_id = None
                self.tokens += step.tokens
                self._take(step.message, cut_off=step.cut_off)
            case ToolStarted() | ChildStarted() | QuestionAnswered():
                self._calls[step.call].last = step
            case QuestionAsked():
                self._calls[step.call].last = step
                self._calls[step.call].questions += 1
                self.newest_question = self._calls[step.call].question_id
            case ToolEnded(tokens=tokens):
                self._calls[step.call].last = step
                self.tokens += tokens
            case _:
                assert_never(step)

    def cost_with(self, steps: Iterable[Step]) -> Decimal | None:
        """Return what the run has cost after these steps as well."""
        costs = [self.cost, *(step.cost for step in steps if isinstance(step, (ModelAnswered, ToolEnded)))]
        known = [cost for cost in costs if cost is not None]
        return sum(known, Decimal()) if known else None

    def next(self) -> Next:
        """Say what to do next."""
        if not self._turns or self._job_id is not None:
            return self._asked()
        if calls := self.open_calls():
            if self.repeats > self._limits.max_repeats + 1:
                names = ", ".join(sorted({call.name for call in calls}))
                return RunFailure(
                    code=RunFailureCode.REPEATED_CALLS,
                    message=f"the model called {names} {self.repeats} times in a row with the same arguments "
                    f"(max_repeats={self._limits.max_repeats})",
                )
            return MakeCalls(calls)
        last = self._turns[-1]
        if last.calls:
            return self._asked()
        return Finish(last.message.get("content") or "", cut_off=last.cut_off)

    @property
    def repeats(self) -> int:
        """How many answers in a row have made the tool calls of the last one."""
        last, count = self._turns[-1].signature, 0
        for turn in reversed(self._turns):
            if turn.signature != last:
                break
            count += 1
        return count

    @property
    def repeated_too_often(self) -> bool:
        """Whether to tell the model that it repeats itself, instead of making its calls."""
        return self.repeats > self._limits.max_repeats

    def messages(self, *, instructions: str, question: str) -> list[dict[str, Any]]:
        """Return the conversation so far."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
        messages.append({"role": "user", "content": question})
        for turn in self._turns:
            messages.append(turn.message)
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": call.last.content}
                for call in turn.calls
                if isinstance(call.last, ToolEnded)
            ]
        return messages

    def _asked(self) -> AskModel | RunFailure:
        limits = self._limits
        if self._job_id is not None:
            return AskModel(self._job_id)
        if self.answers >= limits.max_steps:
            return RunFailure(
                code=RunFailureCode.MAX_STEPS,
                message=f"the model was called {self.answers} times and has no final answer (max_steps)",
            )
        if limits.max_tokens is not None and self.tokens >= limits.max_tokens:
            return RunFailure(
                code=RunFailureCode.MAX_TOKENS,
                message=f"the run has used {self.tokens:,} tokens (max_tokens={limits.max_tokens:,})",
            )
        if limits.max_cost is not None and limits.prices is None:
            return RunFailure(
                code=RunFailureCode.MAX_COST,
                message=f"max_cost={plain(limits.max_cost)} needs prices, and there are none: give them to "
                "the agent, or with max_cost",
            )
        if limits.max_cost is not None and (cost := self.cost or Decimal()) >= limits.max_cost:
            return RunFailure(
                code=RunFailureCode.MAX_COST,
                message=f"the run has cost {plain(cost)} (max_cost={plain(limits.max_cost)})",
            )
        return AskModel(None)

    def _take(self, message: dict[str, Any], *, cut_off: bool) -> None:
        made = message.get("tool_calls") or ()
        calls = [
            Call(
                key=f"{len(self._turns)}.{number}",
                id=each["id"],
                name=each["function"]["name"],
                arguments=each["function"]["arguments"],
                cut_off=cut_off and number == len(made) - 1,
            )
            for number, each in enumerate(made)
        ]
        self._calls = {call.key: call for call in calls}
        self._turns.append(_Turn(_repeatable(message), cut_off, calls))


def kept_steps(run_id: str, steps: Sequence[Step], from_step: int) -> list[Step]:
    """Return what comes before the ``from_step``-th call of the model, which counts from 1.

    Raises:
        RunError: There is no such call, and it is not the next one either; or a tool call before it has no
            result.

    """
    kept: list[Step] = []
    history = History(RunLimits())
    for step in steps:
        if history.answers == from_step - 1 and isinstance(step, (ModelCalled, ModelAnswered)):
            break
        kept.append(step)
        history.add(step)
    ended = isinstance(history.next(), Finish)
    if from_step < 1 or history.answers != from_step - 1 or ended:
        most = history.answers if ended else history.answers + 1
        raise RunError(f"run {run_id} has no step {from_step}: name one from 1 to {most}")
    if waiting := ", ".join(f"{call.name} ({call.key})" for call in history.open_calls()):
        raise RunError(f"run {run_id} has no result of {waiting}: name a step before {from_step}")
    return kept


def _repeatable(message: dict[str, Any]) -> dict[str, Any]:
    """Return the model's message as it can be shown to the model again.

    An engine refuses a call whose arguments are not an object, as they are if the answer was cut off.
    """
    kept: dict[str, Any] = {"role": "assistant", "content": message.get("content")}
    if calls := message.get("tool_calls"):
        kept["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": call["function"]["arguments"]
                    if _is_object(call["function"]["arguments"])
                    else "{}",
                },
            }
            for call in calls
        ]
    return kept


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
