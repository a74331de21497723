"""Reads a message as a job and writes it, or finds out what is known of a message that is not a job."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, cast
from uuid import UUID, uuid5

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import Job, JobId, SessionId
from inferfleet.schemas.names import JOB_MESSAGE_TYPE
from inferfleet.schemas.request import job_error
from inferfleet.schemas.trace import valid_trace

_OURS: Final = JOB_MESSAGE_TYPE.partition(".")[0] + "."
"""How the types of all our messages begin, also of those that are not invented yet."""

_OF_CONTRACT: Final = re.compile(r"(.*\.v)([1-9]\d*)", re.ASCII)
"""A message's type: what it is, and the major version of the contract."""

_PLAIN: Final = frozenset({"", "utf-8", "utf8", "identity", "binary", "7bit", "8bit"})
"""Content encodings of a body that is JSON as it stands."""

_NO_HEADERS: Final[Mapping[str, Any]] = MappingProxyType({})

_NAMESPACE: Final = UUID("5b8f1c1e-0f0a-5d0c-9a52-7f1d7c3c1c55")
"""Of the ids that messages get that have none."""

_job_id: Final[TypeAdapter[str]] = TypeAdapter(JobId)
_session_id: Final[TypeAdapter[str]] = TypeAdapter(SessionId)


class LaterContractError(InvalidJobError):
    """The message is a job of a later contract, which newer workers can read."""


def message_body(job: Job) -> bytes:
    """Encode a job as the body of its message."""
    return to_json(job, exclude_none=True, inf_nan_mode="null")


def read_job(
    body: bytes,
    *,
    message_type: str = "",
    content_encoding: str = "",
    headers: Mapping[str, Any] = _NO_HEADERS,
) -> Job:
    """Read a message's body as a job. Many foreign clients set neither a type nor an encoding.

    A job that names no trace belongs to the one that the headers name, as tracing libraries for AMQP do it.

    Raises:
        InvalidJobError: The message is not a job.
        LaterContractError: The message is a job of a later contract.

    """
    if message_type.startswith(_OURS) and message_type != JOB_MESSAGE_TYPE:
        refused = LaterContractError if _is_later(message_type) else InvalidJobError
        raise refused(
            f"type: {message_type!r} is not {JOB_MESSAGE_TYPE!r}, which is what this version reads; "
            "run workers of the version that the publisher has, or a later one"
        )
    try:
        job = Job.model_validate_json(body)
    except ValidationError as error:
        problem = job_error(error)
        if content_encoding.lower() not in _PLAIN:
            problem = InvalidJobError(
                f"{problem}; its content_encoding is {content_encoding!r}, but a body must be plain JSON"
            )
        raise problem from error
    if "id" not in job.model_fields_set:
        # The model's default would make it another job at every delivery.
        raise InvalidJobError("id: missing; the publisher must give each job a UUID")
    if headers and job.traceparent is None and (trace := valid_trace(headers)):
        return job.model_copy(update=trace)
    return job


def _is_later(message_type: str) -> bool:
    theirs, ours = _OF_CONTRACT.fullmatch(message_type), _OF_CONTRACT.fullmatch(JOB_MESSAGE_TYPE)
    return bool(theirs and ours and theirs[1] == ours[1] and int(theirs[2]) > int(ours[2]))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a message that could not be read as a job.

    ``ids`` are the jobs whose message it may be, the likeliest first.
    """

    ids: tuple[str, ...]
    session_id: str | None


def known_of(body: bytes, message_id: str | None) -> Known:
    """Find what a message says about its job, although the rest of it cannot be read."""
    said = _said(body)
    ids = dict.fromkeys(each for each in (_valid(_job_id, said.get("id")), job_id(message_id)) if each)
    return Known(tuple(ids), _valid(_session_id, said.get("session_id")))


def trace_headers(job: Job) -> dict[str, str]:
    """Return the trace that a job belongs to as headers; none without a ``traceparent``."""
    if not job.traceparent:
        return {}
    named = {"traceparent": job.traceparent, "tracestate": job.tracestate}
    return {name: value for name, value in named.items() if value}


def trace_of(body: bytes) -> dict[str, str]:
    """Return the trace that the body of a message names, as fields of its job."""
    return valid_trace(_said(body))


def letter_id(body: bytes, message_id: str | None) -> str:
    """Return a dead letter's id: its job's id if that is known. The same message always has the same id."""
    known = known_of(body, message_id).ids
    return known[0] if known else derived_id(body, message_id)


def derived_id(body: bytes, message_id: str | None) -> str:
    """Derive an id for a message without a valid one: always the same id (UUIDv5, RFC 9562)."""
    return str(uuid5(_NAMESPACE, f"{hashlib.sha256(body).hexdigest()} {message_id or ''}"))


def job_id(text: str | None) -> str | None:
    """Return the text if it is a valid job id."""
    return _valid(_job_id, text)


def _said(body: bytes) -> dict[str, Any]:
    try:
        fields: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = None
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}


def _valid(kind: TypeAdapter[str], value: object) -> str | None:
    try:
        return kind.validate_python(value)
    except ValidationError:
        return None
