"""What follows a failure: decided by its code, by how often it was tried, and by nothing else."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferfleet.schemas import Failure, FailureCode, JobState
from inferfleet.schemas.plural import count_of
from inferfleet.worker.outcomes import Finish, GiveUp, Outcome, Retry, RetryPolicy, after_failure

RETRYABLE = [code for code in FailureCode if code.retryable]
FINAL = [code for code in FailureCode if not code.retryable]
POLICY = RetryPolicy(base_s=1.0, cap_s=60.0)


def outcome(code: FailureCode, *, attempts: int, max_attempts: int = 5, message: str = "oh") -> Outcome:
    return after_failure(
        Failure(code=code, message=message),
        attempts=attempts,
        max_attempts=max_attempts,
        policy=POLICY,
        rng=random.Random(7),
    )


def test_the_codes_worth_another_try_are_these() -> None:
    assert {code.value for code in RETRYABLE} == {
        "model_unavailable",
        "engine_error",
        "out_of_memory",
        "internal",
    }


@pytest.mark.parametrize("code", RETRYABLE)
@pytest.mark.parametrize("attempts", [1, 4])
def test_what_may_go_better_elsewhere_is_tried_again(code: FailureCode, attempts: int) -> None:
    decided = outcome(code, attempts=attempts)
    assert isinstance(decided, Retry)
    assert decided.failure == Failure(code=code, message="oh")


@pytest.mark.parametrize("code", RETRYABLE)
@pytest.mark.parametrize("attempts", [5, 6])
def test_the_last_attempt_is_followed_by_a_dead_letter_that_says_why(
    code: FailureCode, attempts: int
) -> None:
    decided = outcome(code, attempts=attempts)
    assert isinstance(decided, GiveUp)
    assert decided.failure.code is FailureCode.TOO_MANY_ATTEMPTS
    assert (
        decided.failure.message
        == f"gave up after {count_of(attempts, 'attempt')}; the last failed with {code}: oh"
    )


@pytest.mark.parametrize("code", FINAL)
def test_what_cannot_go_better_is_final_at_once(code: FailureCode) -> None:
    assert outcome(code, attempts=1) == Finish(JobState.FAILED, failure=Failure(code=code, message="oh"))


def test_a_message_of_any_length_fits_into_the_dead_letter() -> None:
    decided = outcome(FailureCode.ENGINE_ERROR, attempts=5, message="x" * 4096)
    assert isinstance(decided, GiveUp)
    assert len(decided.failure.message) == 4096


@given(attempts=st.integers(1, 100), seed=st.integers())
def test_the_pause_doubles_up_to_its_cap_with_half_of_it_left_to_chance(attempts: int, seed: int) -> None:
    full = min(60.0, 2.0 ** (attempts - 1))
    delay = POLICY.delay_s(attempts, rng=random.Random(seed))
    assert full / 2 <= delay <= full


def test_pauses_differ_so_that_jobs_that_failed_together_do_not_come_back_together() -> None:
    rng = random.Random(1)
    assert len({POLICY.delay_s(5, rng=rng) for _ in range(100)}) > 5
