"""What the end of a job is told as: the type of the event, and the id by which the tenant knows the object.

To tell the ends of another kind of object that is a job, add its kind here, and let its route call
``Webhooks.watch`` with it. What is not a job calls ``Webhooks.tell`` when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from inferfleet.schemas.job import JobState
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis.webhooks import JobEnd, WatchedJob

JOB: Final = "job"
"""A job of ``POST /v1/jobs``."""


class Kind(NamedTuple):
    """What the end of a kind of job is told as.

    ``type_of`` makes the type of the event from the state in which the job has ended, and from its result as
    JSON if ``reads_result`` is set and there still is one. ``id_of`` makes the object's id from the job's.
    """

    type_of: Callable[[JobState, bytes | None], str]
    id_of: Callable[[str], str] = str
    reads_result: bool = False


def _type_of_job(state: JobState, _: bytes | None) -> str:
    return f"job.{state}"


KINDS: Final[Mapping[str, Kind]] = {JOB: Kind(_type_of_job)}


def event_of(job: WatchedJob, end: JobEnd, state: JobState) -> WebhookEvent:
    """Make the event of the end of a job whose kind is known."""
    kind = KINDS[job.kind]
    return WebhookEvent(kind.type_of(state, end.result), kind.id_of(job.job_id), end.finished_ms // 1000)
