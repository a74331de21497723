"""Estimates of the work of jobs, by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from inferfleet.schemas import Endpoint
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.work import AnswerMean, AnswerMeans, JobSize, WorkDone, most_tokens

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS


def beat(finished_per_s: float, work_per_s: float, *answers: AnswerMean) -> Heartbeat:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Heartbeat(
        worker_id="w",
        pool="chat",
        phase=WorkerPhase.READY,
        engine="simulated",
        model="m",
        version="1",
        finished_per_s=finished_per_s,
        work_per_s=work_per_s,
        answers=answers,
        started_at=at,
        seen_at=at,
    )


def mean(up_to: int | None, jobs: int, tokens: float) -> AnswerMean:
    return AnswerMean(up_to=up_to, jobs=jobs, tokens=tokens)


@pytest.mark.parametrize(
    ("endpoint", "body", "most"),
    [
        (CHAT, {}, None),
        (CHAT, {"max_tokens": 100}, 100),
        (CHAT, {"max_tokens": 100, "max_completion_tokens": 50}, 50),
        (CHAT, {"max_tokens": 100, "max_completion_tokens": None, "n": 3}, 300),
        (CHAT, {"max_tokens": "100"}, None),
        (CHAT, {"max_tokens": -1}, None),
        (CHAT, {"max_tokens": 10**30}, 2**31),
        (CHAT, {"max_tokens": 1.5, "n": "x"}, None),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 10, "max_completion_tokens": 5}, 10),
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 10}, 20),
        (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 10}, 10),
        (Endpoint.EMBEDDINGS, {"input": "a", "max_tokens": 10}, 0),
    ],
)
def test_the_limit_of_an_answer(endpoint: Endpoint, body: dict[str, Any], most: int | None) -> None:
    assert most_tokens(endpoint, body) == most


@pytest.mark.parametrize("size", [JobSize(12, 100), JobSize(0, None), JobSize(7, 0)])
def test_a_size_is_read_as_it_was_written(size: JobSize) -> None:
    assert JobSize.decoded(size.encoded()) == size


@pytest.mark.parametrize("text", ["", "x", "1/x", "/"])
def test_what_is_no_size_is_none(text: str) -> None:
    assert JobSize.decoded(text) is None


def test_answers_are_grouped_by_their_limits_and_old_ones_fade() -> None:
    means = AnswerMeans()
    for most, tokens in ((100, 10), (128, 30), (129, 200), (None, 7), (0, 0)):
        means.add(most, tokens)
    assert set(means.groups()) == {mean(128, 2, 20), mean(256, 1, 200), mean(None, 1, 7), mean(0, 1, 0)}
    for _ in range(1000):
        means.add(None, 70)
    (unlimited,) = (group for group in means.groups() if group.up_to is None)
    assert unlimited.jobs == 100
    assert unlimited.tokens == pytest.approx(70, abs=0.1)


def test_a_job_is_expected_to_be_as_long_as_others_with_its_limit() -> None:
    done = WorkDone.of(
        [
            beat(1, 500, mean(128, 10, 50), mean(None, 10, 300)),
            beat(3, 1500, mean(128, 30, 90)),
            beat(0, 0),
        ]
    )
    assert done is not None
    assert done.mean == 500
    assert done.expected(JobSize(10, 100)) == 10 + 4 * 80
    assert done.expected(JobSize(10, 70)) == 10 + 4 * 70
    assert done.expected(JobSize(10, None)) == 10 + 4 * 300
    assert done.expected(JobSize(10, 0)) == 10
    # No job with such a limit has ended: the mean of the others, within the limit.
    assert done.expected(JobSize(0, 4096)) == 4 * 190
    assert done.expected(JobSize(0, 8)) == 4 * 8
    assert done.expected(JobSize(10, 100), generated=60) == 10 + 4 * 20
    assert done.expected(JobSize(10, 100), generated=100) == 10


def test_workers_that_have_ended_nothing_lately_or_are_older_say_nothing() -> None:
    assert WorkDone.of([]) is None
    assert WorkDone.of([beat(0, 0, mean(128, 1, 5))]) is None
    assert WorkDone.of([beat(2, 0)]) is None
    only_rates = WorkDone.of([beat(2, 800)])
    assert only_rates is not None
    assert only_rates.expected(JobSize(0, None)) == 400
