"""Runs of agents: what was ordered, the steps that were made, and how each ended.

The steps of a run are its whole state. Whoever continues a run reads them, and makes none of them again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, TypeAdapter, field_serializer, model_validator

from inferfleet.schemas.job import DEFAULT_TENANT, JobId, PoolName
from inferfleet.schemas.limits import LONGEST_S, MOST
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.prices import Amount, Prices
from inferfleet.schemas.problems import disagreement
from inferfleet.schemas.trace import TraceParent
from inferfleet.schemas.wire_model import GivenModel, WireModel

DEFAULT_AGENT_QUEUE: Final = "default"

AgentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Also the name of a tool: what OpenAI's API allows as the name of a function."""

Count = Annotated[int, Field(ge=0)]


class RunState(StrEnum):
    """The state of a run. One that waits, for a person or another run, takes no place in a runner."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the run has ended. Such a state never changes."""
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}


class RunWait(StrEnum):
    """What a waiting run waits for. If it waits for both, a person has to do something first."""

    PERSON = "person"
    """An answer to a question."""

    CHILD = "child"
    """The end of a run that it has started."""


class RunFailureCode(StrEnum):
    """Why a run failed."""

    UNKNOWN_AGENT = "unknown_agent"
    MODEL_FAILED = "model_failed"
    MAX_STEPS = "max_steps"
    MAX_TOKENS = "max_tokens"
    MAX_COST = "max_cost"
    TIMEOUT = "timeout"
    REPEATED_CALLS = "repeated_calls"
    RUNNER_LOST = "runner_lost"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class RunFailure(WireModel):
    """Why a run did not succeed: ``message`` for a person, ``code`` for a program."""

    code: RunFailureCode
    message: str


class RunLimits(GivenModel):
    """Where a run ends at the latest.

    ``max_steps`` counts calls of the model, ``max_tokens`` the tokens of their prompts and answers, with
    those of the runs that it starts. ``timeout_s`` counts from the start, and waiting counts as well. If more
    than ``max_repeats`` answers in a row make the same tool calls with the same arguments, the model is told
    so; if it repeats them again, the run fails.

    ``max_cost`` is an amount of money, in the currency of ``prices``, for all tokens that ``max_tokens``
    counts. If an agent has prices, those of whoever starts its run do not count.
    """

    max_steps: Annotated[int, Field(ge=1, le=10_000), NUMBER] = 30
    max_tokens: Annotated[int, Field(ge=1, le=MOST), NUMBER] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=LONGEST_S), NUMBER] = 24 * 3600.0
    max_repeats: Annotated[int, Field(ge=1, le=1000), NUMBER] = 3
    max_cost: Annotated[Amount, Field(gt=0, le=10**9, decimal_places=6)] | None = None
    prices: Prices | None = None

    def within(self, others: RunLimits) -> RunLimits:
        """Return ``others``, with each member lowered to the one that was set here.

        Prices are no limit: those of ``others`` count, or else the ones that were set here.
        """
        lowered: dict[str, Any] = {"prices": others.prices or self.prices}
        for name in self.model_fields_set - {"prices"}:
            own, other = getattr(self, name), getattr(others, name)
            if own is not None and (other is None or own < other):
                lowered[name] = own
        return others.model_copy(update=lowered)


class RunParent(WireModel):
    """The run that has called this one as a tool, and in which of its tool calls."""

    run_id: JobId
    call: str


class RunReplay(WireModel):
    """Which run is replayed, and from which call of its model on: 1 is the first one."""

    run_id: JobId
    from_step: Annotated[int, Field(ge=1), NUMBER]


class RunOrder(WireModel):
    """What was ordered. It never changes. Times are Redis', in Unix milliseconds."""

    id: JobId
    agent: AgentName
    queue: PoolName = DEFAULT_AGENT_QUEUE
    input: str
    tenant: str = DEFAULT_TENANT
    priority: Annotated[int, Field(ge=0, le=9), NUMBER] | None = None
    """The priority of its jobs; without it, that of the agent."""
    limits: RunLimits | None = None
    """They lower those of the agent. Members that were not set are the agent's."""
    max_tokens: Annotated[int, NUMBER] | None = None
    max_cost: Amount | None = None
    deadline_ms: int | None = None
    """What its parent has left of its own limits."""
    prices: Prices | None = None
    """Those of its parent, which count if its agent has none."""
    parent: RunParent | None = None
    replay: RunReplay | None = None
    created_ms: int
    traceparent: TraceParent | None = None

    @model_validator(mode="after")
    def _prices_have_a_limit(self) -> Self:
        limits = self.limits
        if limits is not None and limits.prices is not None and limits.max_cost is None:
            raise disagreement("limits.prices", "are given without a limit: give max_cost as well")
        return self

    @field_serializer("limits")
    def _only_set(self, limits: RunLimits | None) -> dict[str, Any] | None:
        return None if limits is None else limits.model_dump(mode="json", exclude_unset=True)


class ModelCalled(WireModel):
    """The model is called: this job answers. Recorded before the job is submitted."""

    kind: Literal["model_called"] = "model_called"
    job_id: JobId


class ModelAnswered(WireModel):
    """The model has answered with this message of a chat. ``tokens`` are those of prompt and answer.

    ``cost`` is what they cost, if the runner knew their prices. One that is ``cut_off`` ends where it had as
    many tokens as it may, and so does its last tool call.
    """

    kind: Literal["model_answered"] = "model_answered"
    message: dict[str, Any]
    tokens: Count
    cost: Amount | None = None
    cut_off: bool = False


class ToolStarted(WireModel):
    """A tool is called. Recorded before it is. ``call`` is ``<number of the answer>.<number in it>``."""

    kind: Literal["tool_started"] = "tool_started"
    call: str


class ChildStarted(WireModel):
    """Another agent is called as a tool: this run answers. Recorded before that run is started."""

    kind: Literal["child_started"] = "child_started"
    call: str
    run_id: JobId


class QuestionKind(StrEnum):
    """What a person is asked about a tool call."""

    APPROVAL = "approval"
    """Whether to make it."""

    UNKNOWN_OUTCOME = "unknown_outcome"
    """Whether to make it again: its runner died before it recorded the result."""


class QuestionAsked(WireModel):
    """A person is asked about a tool call. Without an answer before ``until_ms``, the call is denied."""

    kind: Literal["question_asked"] = "question_asked"
    call: str
    question: QuestionKind
    until_ms: int | None = None


class Verdict(StrEnum):
    """How a person answers."""

    APPROVE = "approve"
    """Make the call."""

    DENY = "deny"
    """Do not make it, and tell the model so."""

    RESULT = "result"
    """Do not make it, and give the model this result."""


class Answer(WireModel):
    """What a person has answered. ``note`` is the result, or a reason for the model."""

    verdict: Verdict
    note: str = ""


class QuestionAnswered(WireModel):
    """A person has answered, or nobody has in time."""

    kind: Literal["question_answered"] = "question_answered"
    call: str
    answer: Answer


class ToolEnded(WireModel):
    """A tool call has a result: what the model reads.

    ``tokens`` and ``cost`` are those of a run that it started.
    """

    kind: Literal["tool_ended"] = "tool_ended"
    call: str
    content: str
    failed: bool = False
    tokens: Count = 0
    cost: Amount | None = None


Step = Annotated[
    ModelCalled | ModelAnswered | ToolStarted | ChildStarted | QuestionAsked | QuestionAnswered | ToolEnded,
    Field(discriminator="kind"),
]

CallStep = ToolStarted | ChildStarted | QuestionAsked | QuestionAnswered | ToolEnded
"""A step of one tool call."""

STEP: Final[TypeAdapter[Step]] = TypeAdapter(Step)


class RunResult(WireModel):
    """How a run ended."""

    run_id: JobId
    state: RunState
    text: str = ""
    cut_off: bool = False
    """Whether the text ends where it had as many tokens as it may."""
    error: RunFailure | None = None
    steps: Count = 0
    """How often the model was called."""
    tokens: Count = 0
    cost: Amount | None = None
    """What it has cost, with the runs that it started; ``None`` if no price is known."""


class RunSummary(WireModel):
    """What a list shows of a run: nothing that may be long."""

    id: JobId
    agent: AgentName
    tenant: str
    state: RunState
    waits_for: RunWait | None = None
    """What it waits for, if it does."""
    created_ms: int
    """When it was started, in Redis' time, in Unix milliseconds."""
    cost: Amount | None = None
    """What it has cost so far, with the runs that it started; ``None`` if no price is known."""


class RunRecord(WireModel):
    """What is known of a run now."""

    order: RunOrder
    state: RunState
    runner: str | None = None
    wake_ms: int | None = None
    """When a waiting run goes on at the latest."""
    waits_for: RunWait | None = None
    """What it waits for, if it does."""
    lease_left_ms: int = 0
    """How long its runner holds it without another sign of life; 0 if it has none."""
    announced: str = ""
    """The newest question of which webhook endpoints were told."""
    cost: Amount | None = None
    """What it has cost so far, with the runs that it started; ``None`` if no price is known."""
    result: RunResult | None = None
