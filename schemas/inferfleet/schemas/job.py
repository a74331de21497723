"""A job: a request that can wait."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final

import uuid_utils
from pydantic import AwareDatetime, Field

from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.wire_model import WireModel

DEFAULT_POOL: Final = "default"
DEFAULT_TENANT: Final = "default"
DEFAULT_MAX_ATTEMPTS: Final = 5

PoolName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?$")]
"""Lower-case letters, digits, dots, underscores and dashes; 1 to 63 characters."""

JobId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
"""A UUID in its canonical lower-case form. Ours are UUIDv7, so they sort by time of submission."""

Moment = Annotated[
    AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(9999, 1, 1, tzinfo=UTC))
]
"""A time with its time zone, from 1970 to 9998: what every reader of a record can calculate with."""

SessionId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\s{}]+$")]


class Priority(IntEnum):
    """Named priorities. Any whole number from 0 to 9 is allowed; 9 is the most urgent."""

    BATCH = 1
    NORMAL = 4
    HIGH = 7
    URGENT = 9


class JobState(StrEnum):
    """Where a job stands. A terminal state never changes."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether the job has reached its one result."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


class OnBusy(StrEnum):
    """What a new turn does when its session has an unfinished one."""

    ENQUEUE = "enqueue"
    """Wait for its turn."""

    REJECT = "reject"
    """Refuse: ``SessionBusyError`` at the caller."""

    INTERRUPT = "interrupt"
    """Stop the running turn, keep what it said so far as said, then run."""

    ROLLBACK = "rollback"
    """Stop the running turn without a trace, then run."""


def new_job_id() -> str:
    """Make a UUIDv7 (RFC 9562): unique, and ordered by time."""
    return str(uuid_utils.uuid7())


class Job(WireModel):
    """One unit of work, as it travels in the queue.

    ``body`` is the request body of ``endpoint``, in its own terms. ``expires_at`` is the last
    moment at which the job may start; ``timeout_s`` limits one attempt's running time in seconds.
    A turn of a session carries only the new messages; ``state_patch`` (JSON Merge Patch, RFC 7396) is
    applied to the session's state when the turn is added.
    """

    id: JobId = Field(default_factory=new_job_id)
    pool: PoolName = DEFAULT_POOL
    endpoint: Endpoint = Endpoint.CHAT
    body: dict[str, Any]
    priority: Annotated[int, Field(ge=0, le=9, strict=True)] = Priority.NORMAL
    session_id: SessionId | None = None
    on_busy: OnBusy = OnBusy.ENQUEUE
    state_patch: dict[str, Any] | None = None
    stream: bool = False
    expires_at: Moment | None = None
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100, strict=True)] = DEFAULT_MAX_ATTEMPTS
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    tenant: Annotated[str, Field(min_length=1, max_length=128)] = DEFAULT_TENANT
    metadata: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)
    # For a job that no client of ours makes; a client takes Redis' time.
    submitted_at: Moment = Field(default_factory=lambda: datetime.now(UTC))  # noqa: TID251
