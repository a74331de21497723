"""Estimates of the work of jobs, by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from inferfleet.schemas import Endpoint
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.work import AnswerMean, JobMean, JobSize, Means, WorkDone, most_tokens

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS


def beat(mean_job: JobMean | None, *answers: AnswerMean) -> Heartbeat:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Heartbeat(
        worker_id="w",
        pool="chat",
        phase=WorkerPhase.READY,
        engine="simulated",
        model="m",
        version="1",
        mean_job=mean_job,
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
        (CHAT, {"max_tokens": "100.0"}, 100),
        (CHAT, {"max_tokens": True, "n": 0}, 1),
        (CHAT, {"max_tokens": 10, "n": -3}, 10),
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
    means = Means()
    assert (means.job, means.answers) == (None, ())
    for most, tokens in ((100, 10), (128, 30), (129, 200), (None, 7), (0, 0)):
        means.add_answer(most, tokens)
    assert set(means.answers) == {mean(128, 2, 20), mean(256, 1, 200), mean(None, 1, 7), mean(0, 1, 0)}
    for _ in range(1000):
        means.add_answer(None, 70)
    (unlimited,) = (group for group in means.answers if group.up_to is None)
    assert unlimited.jobs == 100
    assert unlimited.tokens == pytest.approx(70, abs=0.1)


def test_the_mean_job_has_a_part_that_does_not_depend_on_its_tokens() -> None:
    means = Means()
    means.add_job(JobSize(10, 0), 0, seconds=1.0)
    assert means.job == JobMean(jobs=1, seconds=1.0, work=74)
    means.add_job(JobSize(10, 100), 50, seconds=3.0)
    assert means.job == JobMean(jobs=2, seconds=2.0, work=174)
    for _ in range(1000):
        means.add_job(JobSize(0, 0), 0, seconds=5.0)
    assert means.job is not None
    assert means.job.jobs == 100
    assert means.job.seconds == pytest.approx(5, abs=0.01)


def test_a_job_is_expected_to_be_as_long_as_others_with_its_limit() -> None:
    done = WorkDone.of(
        [
            beat(JobMean(jobs=10, seconds=1, work=200), mean(128, 10, 50), mean(None, 10, 300)),
            beat(JobMean(jobs=30, seconds=1, work=600), mean(128, 30, 90)),
            beat(None),
        ]
    )
    assert done is not None
    assert done.mean == 500
    assert done.expected(JobSize(10, 100)) == 74 + 4 * 80
    assert done.expected(JobSize(10, 70)) == 74 + 4 * 70
    assert done.expected(JobSize(10, None)) == 74 + 4 * 300
    assert done.expected(JobSize(10, 0)) == 74
    # No job with such a limit has ended: the mean of the others, within the limit.
    assert done.expected(JobSize(10, 4096)) == 74 + 4 * 190
    assert done.expected(JobSize(10, 8)) == 74 + 4 * 8
    assert done.expected(JobSize(10, 100), generated=60) == 74 + 4 * 20
    assert done.expected(JobSize(10, 100), generated=100) == 74


def test_workers_that_have_ended_nothing_or_are_older_say_nothing() -> None:
    assert WorkDone.of([]) is None
    assert WorkDone.of([beat(None, mean(128, 1, 5))]) is None
    only_jobs = WorkDone.of([beat(JobMean(jobs=1, seconds=1, work=400))])
    assert only_jobs is not None
    assert only_jobs.expected(JobSize(0, None)) == 64 + 400
