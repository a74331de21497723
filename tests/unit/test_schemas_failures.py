"""Failure codes: the closed list, and which of them are worth another attempt."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from inferfleet.schemas import Failure, FailureCode

RETRYABLE = {"model_unavailable", "engine_error", "out_of_memory", "internal"}
FINAL = {
    "invalid_request",
    "prompt_too_long",
    "timeout",
    "expired",
    "cancelled",
    "too_many_attempts",
    "session_conflict",
    "predecessor_failed",
}


def test_the_list_of_codes_is_closed() -> None:
    assert {code.value for code in FailureCode} == RETRYABLE | FINAL
    with pytest.raises(ValidationError):
        Failure.model_validate({"code": "bad_luck", "message": ""})


@pytest.mark.parametrize("code", sorted(RETRYABLE))
def test_what_may_go_well_elsewhere_or_later_is_retried(code: str) -> None:
    assert FailureCode(code).retryable


@pytest.mark.parametrize("code", sorted(FINAL))
def test_what_would_only_fail_again_is_not_retried(code: str) -> None:
    assert not FailureCode(code).retryable
