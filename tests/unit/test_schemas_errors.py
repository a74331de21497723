"""The tree of errors: as its module draws it, and with messages that help."""

from __future__ import annotations

import inspect

import pytest

from inferfleet.schemas import errors
from inferfleet.schemas.errors import (
    InferfleetError,
    JobFailedError,
    JobNotFoundError,
    PartialSubmitError,
    QueueFullError,
    ServiceUnreachableError,
    WaitTimeoutError,
)


def drawn_tree() -> dict[str, str]:
    """Each error in the drawing, and the one above it."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        name = next((word for word in line.split() if word.endswith("Error")), None)
        if name is None:
            continue
        depth = line.index(name) // 4
        del above[depth:]
        if above:
            parents[name] = above[-1]
        above.append(name)
    return parents


def real_tree(root: type[InferfleetError]) -> dict[str, str]:
    parents: dict[str, str] = {}
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            parents |= {child.__name__: root.__name__, **real_tree(child)}
    return parents


def test_the_drawing_shows_every_error_where_it_is() -> None:
    assert drawn_tree() == real_tree(InferfleetError)


def test_errors_of_time_and_connection_are_also_those_of_python() -> None:
    assert issubclass(WaitTimeoutError, TimeoutError)
    assert issubclass(ServiceUnreachableError, ConnectionError)


def test_a_partial_submit_says_how_many_and_which_was_the_first() -> None:
    error = PartialSubmitError(accepted=["a", "b"], rejected={2: QueueFullError("the queue is full")})
    assert str(error) == "1 of 3 jobs were not accepted; the first is number 2: the queue is full"
    assert error.accepted == ("a", "b")
    assert list(error.rejected) == [2]


def test_a_missing_job_is_named_with_the_setting_that_may_have_ended_it() -> None:
    error = JobNotFoundError("j1")
    assert error.job_id == "j1"
    assert "INFERFLEET_RESULT_TTL_S" in str(error)


@pytest.mark.parametrize(
    ("code", "words"), [("timeout", "job j1 failed: timeout: too slow"), (None, "job j1 failed: too slow")]
)
def test_a_failed_job_says_its_state_code_and_reason(code: str | None, words: str) -> None:
    assert str(JobFailedError(job_id="j1", state="failed", code=code, message="too slow")) == words
    cancelled = JobFailedError(job_id="j1", state="cancelled", code="cancelled", message="while it ran")
    assert str(cancelled) == "job j1 cancelled: while it ran"
