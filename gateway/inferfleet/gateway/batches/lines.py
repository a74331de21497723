"""Writes how a line of a batch has ended, in the form of OpenAI's output and error files."""

from __future__ import annotations

from http import HTTPStatus

from inferfleet.producer.batch.files import ID_PREFIX
from inferfleet.producer.openai.models import Route
from inferfleet.producer.openai.refusals import refusal_of
from inferfleet.schemas.batch import BatchLineError, BatchOutputLine, BatchResponse, BatchState
from inferfleet.schemas.errors import JobFailedError
from inferfleet.schemas.failures import FailureCode

_UNFINISHED = {
    BatchState.CANCELLED: ("batch_cancelled", "the batch was cancelled before this request had an answer"),
    BatchState.EXPIRED: ("batch_expired", "the completion window ended before this request had an answer"),
}
"""Why lines without an answer have none, by the state in which the batch ends."""


def no_pool(route: Route) -> str:
    """Say that nobody serves a model."""
    if route.alias:
        return f"the model {route.pool!r} is unknown: no live worker serves it, and no pool has its name"
    return f"the pool {route.pool!r} has no queue"


def in_openais_form(line: BatchOutputLine, *, ends: BatchState) -> BatchOutputLine:
    """Turn how a line ended into a line of OpenAI's files. ``ends`` is the state in which its batch ends.

    A request that failed has the status and the error that it would have got by itself. One that was given up
    with its batch has no status.
    """
    if (error := line.error) is None:
        return line
    if error.code == FailureCode.EXPIRED or (error.code == FailureCode.CANCELLED and ends in _UNFINISHED):
        return unfinished(line, ends if ends in _UNFINISHED else BatchState.EXPIRED, number=error.line)
    job_id = line.id.removeprefix(ID_PREFIX)
    refusal = refusal_of(
        JobFailedError(job_id=job_id, state="failed", code=error.code, message=error.message)
    )
    response = BatchResponse(
        status_code=refusal.status, request_id=job_id, body={"error": {**refusal.error(), "line": error.line}}
    )
    return line.model_copy(update={"error": None, "response": response})


def state_of(line: BatchOutputLine) -> str:
    """Return how a line of OpenAI's files has ended: as completed, failed, cancelled or expired."""
    if line.error is not None:
        return next((state for state, (code, _) in _UNFINISHED.items() if code == line.error.code), "failed")
    return "completed" if line.response and line.response.status_code == HTTPStatus.OK else "failed"


def unfinished(line: BatchOutputLine, ends: BatchState, *, number: int) -> BatchOutputLine:
    """Make the line of a request, the input's line ``number``, that was given up with its batch."""
    code, message = _UNFINISHED[ends]
    return line.model_copy(update={"error": BatchLineError(code=code, message=message, line=number)})
