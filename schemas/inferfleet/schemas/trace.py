"""The trace that a job belongs to, as W3C Trace Context spells it (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated, Any, Final

from pydantic import AfterValidator, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import PydanticKnownError

TRACEPARENT_PATTERN: Final = "^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$"

MAX_TRACESTATE_CHARS: Final = 512
"""The length that every system must be able to pass on."""

_MAX_MEMBERS: Final = 32

_TRACE: Final = blake2b(digest_size=16, person=b"trace")
"""Copied for each job, which takes half as long as making one."""

_TRACEPARENT: Final = re.compile(TRACEPARENT_PATTERN)
_MEMBER: Final = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


def _traceparent(text: str) -> str:
    if _TRACEPARENT.fullmatch(text) is None:
        raise PydanticKnownError("string_pattern_mismatch", {"pattern": TRACEPARENT_PATTERN})
    return text


def _tracestate(text: str) -> str:
    if len(text) > MAX_TRACESTATE_CHARS:
        raise PydanticKnownError("string_too_long", {"max_length": MAX_TRACESTATE_CHARS})
    members = list(filter(None, (member.strip(" \t") for member in text.split(","))))
    if len(members) > _MAX_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        raise PydanticKnownError("string_pattern_mismatch", {"pattern": _MEMBER.pattern})
    return text


TraceParent = Annotated[
    str,
    AfterValidator(_traceparent),
    WithJsonSchema({"type": "string", "pattern": TRACEPARENT_PATTERN}),
]
"""The trace and the span that caused a job."""

TraceState = Annotated[
    str,
    AfterValidator(_tracestate),
    WithJsonSchema({"type": "string", "maxLength": MAX_TRACESTATE_CHARS}),
]
"""What tracing systems add to a ``TraceParent``."""

_parent: Final[TypeAdapter[str]] = TypeAdapter(TraceParent)
_state: Final[TypeAdapter[str]] = TypeAdapter(TraceState)


def valid_trace(said: Mapping[str, Any]) -> dict[str, str]:
    """Return ``traceparent`` and ``tracestate`` of headers or of a job's fields, as far as they are valid.

    As the standard demands, an invalid ``traceparent`` counts as none, and without one there is no
    ``tracestate``.
    """
    trace: dict[str, str] = {}
    for name, spelling in (("traceparent", _parent), ("tracestate", _state)):
        try:
            trace[name] = spelling.validate_python(said.get(name))
        except ValidationError:
            break
    return trace


def trace_id(traceparent: str) -> str:
    """Return the id of the trace: 32 hexadecimal digits."""
    return traceparent[3:35]


def is_sampled(traceparent: str) -> bool:
    """Return whether a ``traceparent`` has the flag ``sampled``."""
    return bool(int(traceparent[-2:], 16) & 1)


def trace_of_attempts(job_id: str, traceparent: str | None) -> str:
    """Return the id of the trace of a job's attempts: that of the submission, or one made of the job's id.

    So it is the same for all attempts, and a sampler that goes by it decides the same about them. A run of an
    agent has its trace in the same way.
    """
    if traceparent is not None:
        return trace_id(traceparent)
    trace = _TRACE.copy()
    trace.update(job_id.encode())
    return trace.hexdigest()


def span_of_run(run_id: str) -> str:
    """Return the id of the span of a run of an agent: 16 hexadecimal digits.

    It follows from the run, so what the run starts is below the span before that is made.
    """
    return blake2b(run_id.encode(), digest_size=8, person=b"run").hexdigest()


def span_of_attempt(job_id: str, attempt: int) -> str:
    """Return the id of the span of an attempt: 16 hexadecimal digits.

    It follows from the job and the number, so a later attempt can link to the span, or make it in the place
    of a worker that died.
    """
    return blake2b(f"{job_id} {attempt}".encode(), digest_size=8, person=b"attempt").hexdigest()
