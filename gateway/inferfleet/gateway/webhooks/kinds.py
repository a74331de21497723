"""Which event the end of a job becomes: its type, and the id by which the tenant knows the object.

To tell the ends of another kind of object that is a job, add its kind here, and let its route call
``Webhooks.watch`` with it. What is not a job calls ``Webhooks.tell`` when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from inferfleet.schemas.job import JobState
from inferfleet.schemas.result import Result
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis.webhooks import JobEnd, WatchedJob

JOB: Final = "job"
"""A job of ``POST /v1/jobs``."""

RESPONSE: Final = "response"
"""A response of the Responses API that runs in the background."""


class Kind(NamedTuple):
    """Which event the end of a kind of job becomes.

    ``type_of`` makes the type of the event from the state in which the job has ended, and from its result as
    JSON if ``reads_result`` is set and there still is one. ``id_of`` makes the object's id from the job's.
    """

    type_of: Callable[[JobState, bytes | None], str]
    id_of: Callable[[str], str] = str
    reads_result: bool = False


def _type_of_job(state: JobState, _: bytes | None) -> str:
    return f"job.{state}"


def _type_of_response(state: JobState, result: bytes | None) -> str:
    status = _RESPONSES[state]
    if state is JobState.SUCCEEDED and result is not None:
        answer = Result.model_validate_json(result).response or {}
        if any(choice["finish_reason"] == "length" for choice in answer.get("choices", ())):
            status = "incomplete"
    return f"response.{status}"


_RESPONSES: Final[Mapping[JobState, str]] = {
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "failed",
}

KINDS: Final[Mapping[str, Kind]] = {
    JOB: Kind(_type_of_job),
    RESPONSE: Kind(_type_of_response, "resp_{}".format, reads_result=True),
}


def job_of(event: WebhookEvent) -> str:
    """Return the id of the job whose end an event is, if it is one."""
    return event.object_id.removeprefix("resp_")


def event_of(job: WatchedJob, end: JobEnd, state: JobState) -> WebhookEvent:
    """Make the event of the end of a job whose kind is known."""
    kind = KINDS[job.kind]
    return WebhookEvent(kind.type_of(state, end.result), kind.id_of(job.job_id), end.finished_ms // 1000)
