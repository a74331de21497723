"""A job: one request to a model, as it travels in the queue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final

import uuid_utils
from pydantic import AwareDatetime, Field

from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.passages import Passage, Retrieve
from inferfleet.schemas.trace import TraceParent, TraceState
from inferfleet.schemas.wire_model import GivenModel

DEFAULT_POOL: Final = "default"
DEFAULT_TENANT: Final = "default"
DEFAULT_MAX_ATTEMPTS: Final = 5

PoolName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?$")]
"""Lower-case letters, digits, dots, underscores and dashes; 1 to 63 characters."""

JOB_ID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
"""The ids of jobs and of runs, as a regular expression."""

JobId = Annotated[str, Field(pattern=f"^{JOB_ID}$")]
"""A UUID in its canonical lower-case form. Our clients make UUIDv7, which sort by time of submission."""

Moment = Annotated[
    AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(9999, 1, 1, tzinfo=UTC))
]
"""A time with its time zone, from 1970 to 9998: the range that every reader can calculate with."""

MAX_DELAY: Final = timedelta(days=30)
"""How far ``not_before`` may be ahead of the submission: Redis and RabbitMQ keep the job for so long."""

MAX_PREDECESSORS: Final = 16
"""How many jobs a job may run after."""

MAX_SESSION_ID_CHARS: Final = 128

MAX_METADATA: Final = 64
"""How many members a job's metadata may have."""

SessionId = Annotated[str, Field(min_length=1, max_length=MAX_SESSION_ID_CHARS, pattern=r"^[^\s{}]+$")]


class Priority(IntEnum):
    """Named priorities. Any integer from 0 to 9 is allowed; 9 is the most urgent."""

    BATCH = 1
    NORMAL = 4
    HIGH = 7
    URGENT = 9


class JobState(StrEnum):
    """The state of a job. A terminal state never changes."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


class OnBusy(StrEnum):
    """What to do with a new turn while its session has an unfinished one."""

    ENQUEUE = "enqueue"
    """Let the new turn wait in the lane."""

    REJECT = "reject"
    """Refuse the new turn: ``submit`` raises ``SessionBusyError``."""

    INTERRUPT = "interrupt"
    """Stop the running turn, keep its partial answer in the history, then run the new one."""

    ROLLBACK = "rollback"
    """Stop the running turn without a trace in the history, then run the new one."""


class OnLate(StrEnum):
    """What to do with a job that would expire before it starts, as far as can be estimated."""

    ACCEPT = "accept"
    """Submit it all the same."""

    REJECT = "reject"
    """Refuse it: ``submit`` raises ``TooLateError``."""


def new_job_id() -> str:
    """Make a UUIDv7 (RFC 9562): unique, and ordered by time."""
    return str(uuid_utils.uuid7())


class Job(GivenModel):
    """One request to a model, as it travels in the queue.

    ``body`` is the request body of ``endpoint``. ``not_before`` is the first moment at which the job may
    start, ``expires_at`` the last; it starts when the jobs ``after`` have succeeded, whose texts it may have
    in its body; ``timeout_s`` limits the running time of one attempt, in seconds. A turn of a session
    carries only the new messages. ``instructions`` are a system message in front of the history, for this
    turn alone; ``state_patch`` (JSON Merge Patch, RFC 7396) is applied to the session's state when the turn
    is added to the history. ``traceparent`` and ``tracestate`` are the W3C Trace Context of the submission;
    they stay with the job, whoever publishes it again. ``submitted_to`` is the pool that the submitter asked
    for, if a rollout has put the job into another one. ``on_busy`` and ``on_late`` are for submitters:
    workers ignore them. ``retrieve`` says what the submitter looks for in an index. The ``passages`` that it
    has found are in the prompt, in front of the last message, and not in the session.
    """

    id: JobId = Field(default_factory=new_job_id)
    pool: PoolName = DEFAULT_POOL
    submitted_to: PoolName | None = None
    endpoint: Endpoint = Endpoint.CHAT
    body: dict[str, Any]
    priority: Annotated[int, Field(ge=0, le=9, strict=True)] = Priority.NORMAL
    session_id: SessionId | None = None
    on_busy: OnBusy = OnBusy.ENQUEUE
    instructions: str | None = None
    state_patch: dict[str, Any] | None = None
    retrieve: Retrieve | None = None
    passages: Annotated[tuple[Passage, ...], Field(max_length=100)] | None = None
    stream: bool = False
    not_before: Moment | None = None
    after: Annotated[tuple[JobId, ...], Field(min_length=1, max_length=MAX_PREDECESSORS)] | None = None
    expires_at: Moment | None = None
    on_late: OnLate = OnLate.ACCEPT
    timeout_s: Annotated[float, Field(gt=0, le=86_400), NUMBER] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100, strict=True)] = DEFAULT_MAX_ATTEMPTS
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    tenant: Annotated[str, Field(min_length=1, max_length=128)] = DEFAULT_TENANT
    metadata: Annotated[dict[str, str], Field(max_length=MAX_METADATA)] = Field(default_factory=dict)
    traceparent: TraceParent | None = None
    tracestate: TraceState | None = None
    # Only for jobs of foreign clients: our client sets Redis' time.
    submitted_at: Moment = Field(default_factory=lambda: datetime.now(UTC))  # noqa: TID251

    @property
    def waits_since(self) -> datetime:
        """When the job began to wait for a worker: at its submission, or ``not_before`` if that is later."""
        return self.submitted_at if self.not_before is None else max(self.submitted_at, self.not_before)


def schedule_problem(job: Job) -> str | None:
    """Return why a job cannot start at its ``not_before``; ``None`` if it can, or has none."""
    if job.not_before is None:
        return None
    if job.session_id is not None:
        return (
            "not_before: a turn of a session starts when the turn before it has ended; leave it out, or "
            "submit the turn at that time"
        )
    if job.expires_at is not None and job.expires_at <= job.not_before:
        return (
            f"expires_at: {job.expires_at.isoformat()} is not after not_before, "
            f"{job.not_before.isoformat()}, so the job could never start; give it a later expires_at"
        )
    return None
