"""Makes the ``response`` object of OpenAI's Responses API from a job and what is kept of its request."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from inferfleet.producer.openai.response_requests import RESPONSE_PREFIX, ResponseRecord
from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import JobState
from inferfleet.schemas.result import Result

_STATUSES: Final[Mapping[JobState, str]] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "failed",
}

_CALLERS_FAULT: Final = (FailureCode.INVALID_REQUEST, FailureCode.PROMPT_TOO_LONG)
"""The failures that OpenAI calls ``invalid_prompt``; all others are ``server_error``."""


def response_object(
    job_id: str,
    record: ResponseRecord,
    *,
    state: JobState,
    result: Result | None = None,
    finished_at: datetime | None = None,
) -> dict[str, Any]:
    """Make a response, without its output."""
    answer: Mapping[str, Any] = (result and result.response) or {}
    status = _STATUSES[state]
    cut = state is JobState.SUCCEEDED and any(
        choice["finish_reason"] == "length" for choice in answer.get("choices", ())
    )
    if cut:
        status = "incomplete"
    return {
        "id": f"{RESPONSE_PREFIX}{job_id}",
        "object": "response",
        "created_at": record.created_at,
        "completed_at": int(finished_at.timestamp()) if finished_at and status == "completed" else None,
        "status": status,
        "error": _error(result),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "max_tool_calls": None,
        **record.shown,
        "model": answer.get("model") or record.shown["model"],
        "output": [],
        "usage": _usage(result, answer) if answer else None,
    }


def _error(result: Result | None) -> dict[str, str] | None:
    if result is None or result.state in {JobState.SUCCEEDED, JobState.CANCELLED}:
        return None
    failure = result.error
    code = "invalid_prompt" if failure and failure.code in _CALLERS_FAULT else "server_error"
    return {
        "code": code,
        "message": f"{failure.code}: {failure.message}" if failure else "no reason was recorded",
    }


def _usage(result: Result | None, answer: Mapping[str, Any]) -> dict[str, Any] | None:
    if result is None:
        return None
    usage = result.usage
    said: Mapping[str, Any] = answer.get("usage") or {}
    details: Mapping[str, Any] = said.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens") or 0},
        "total_tokens": usage.total_tokens,
    }
