"""Why a job did not succeed: the closed list of codes in results and dead letters."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from inferfleet.schemas.wire_model import WireModel


class FailureCode(StrEnum):
    """The reason why a job failed. A closed list: a new reason needs a new version of the contract."""

    INVALID_REQUEST = "invalid_request"
    PROMPT_TOO_LONG = "prompt_too_long"
    MODEL_UNAVAILABLE = "model_unavailable"
    ENGINE_ERROR = "engine_error"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    SESSION_CONFLICT = "session_conflict"
    PREDECESSOR_FAILED = "predecessor_failed"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """Whether the same job may succeed on another worker or later."""
        return self in _RETRYABLE

    @property
    def of_request(self) -> bool:
        """Whether the request itself is the reason, not the worker that ran it."""
        return self in _OF_REQUEST


_RETRYABLE = frozenset(
    {
        FailureCode.MODEL_UNAVAILABLE,
        FailureCode.ENGINE_ERROR,
        FailureCode.OUT_OF_MEMORY,
        FailureCode.INTERNAL,
    }
)


_OF_REQUEST = frozenset(
    {FailureCode.INVALID_REQUEST, FailureCode.PROMPT_TOO_LONG, FailureCode.SESSION_CONFLICT}
)


class Failure(WireModel):
    """Why a job failed: ``message`` for a person, ``code`` for a program."""

    code: FailureCode
    message: Annotated[str, Field(max_length=4096)]
