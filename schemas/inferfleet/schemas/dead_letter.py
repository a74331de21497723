"""A dead letter: a message that was given up, and the reason."""

from __future__ import annotations

from pydantic import AwareDatetime

from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import Job, PoolName
from inferfleet.schemas.result import Count
from inferfleet.schemas.wire_model import WireModel


class DeadLetter(WireModel):
    """One dead letter. ``job`` is ``None`` for a message that could not be read as a job.

    ``message_id`` is its job's id. If the message has no valid id, this one is derived from its body and from
    the invalid id.
    """

    message_id: str
    pool: PoolName
    code: FailureCode
    message: str
    attempts: Count
    worker_id: str | None = None
    died_at: AwareDatetime | None = None
    job: Job | None = None
