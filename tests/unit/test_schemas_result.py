"""Results: their text, and the error of a job that did not succeed."""

from __future__ import annotations

from typing import Any

import pytest

from inferfleet.schemas import Failure, FailureCode, JobState, Result, Usage
from inferfleet.schemas.errors import JobFailedError
from inferfleet.schemas.job import new_job_id


def result(response: dict[str, Any] | None) -> Result:
    return Result(job_id=new_job_id(), state=JobState.SUCCEEDED, response=response)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ({"choices": [{"message": {"role": "assistant", "content": "Hi."}}]}, "Hi."),
        ({"choices": [{"text": "Hi."}, {"text": "Ho."}]}, "Hi."),
        ({"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": []}}]}, ""),
        ({"data": [{"embedding": [0.5]}]}, ""),
        ({"choices": []}, ""),
        (None, ""),
    ],
    ids=str,
)
def test_the_text_is_that_of_the_first_choice(response: dict[str, Any] | None, text: str) -> None:
    assert result(response).text == text


def test_a_result_that_succeeded_passes_its_own_check() -> None:
    good = result({})
    assert good.raise_for_state() is good


def test_a_result_that_failed_raises_with_its_code_and_reason() -> None:
    failure = Failure(code=FailureCode.TIMEOUT, message="still running after 5 s")
    bad = Result(job_id=new_job_id(), state=JobState.FAILED, error=failure)
    with pytest.raises(JobFailedError, match=r"failed: timeout: still running after 5 s") as caught:
        bad.raise_for_state()
    assert (caught.value.job_id, caught.value.state, caught.value.code) == (bad.job_id, "failed", "timeout")


def test_total_tokens_are_prompt_and_completion() -> None:
    assert Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2).total_tokens == 7
