"""The demo's report: what it counts, and how it says it."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from inferfleet.local.demo.report import Report, percentile, report_on
from inferfleet.schemas import Failure, FailureCode, Result, Timings, Usage
from inferfleet.schemas.job import Job, JobState, Priority
from inferfleet.schemas.result import JobRecord


def job(priority: Priority) -> Job:
    return Job(body={"messages": [{"role": "user", "content": "hi"}]}, priority=priority)


def record(job: Job, state: JobState, *, waited_s: float = 1.0, tokens: int = 10) -> JobRecord:
    """A job's record, with its result if the state is terminal."""
    result = Result(
        job_id=job.id,
        state=state,
        error=None if state is JobState.SUCCEEDED else Failure(code=FailureCode.TIMEOUT, message="too slow"),
        usage=Usage(prompt_tokens=1000, completion_tokens=tokens),
        timings=Timings(queue_wait_s=waited_s, generation_s=1.0, total_s=waited_s + 1.0),
    )
    return JobRecord(
        id=job.id,
        state=state,
        pool=job.pool,
        priority=job.priority,
        result=result if state.terminal else None,
    )


def report(*records: tuple[Job, JobRecord | None], total: int | None = None) -> Report:
    return report_on(
        [job for job, _ in records],
        {job.id: record for job, record in records},
        total=len(records) if total is None else total,
        duration_s=4.0,
        services="two tins and a string",
    )


def text_of(report: Report) -> str:
    console = Console(file=StringIO(), width=100)
    with console.capture() as capture:
        console.print(report.as_table())
    return capture.get()


def test_all_well() -> None:
    batch, urgent = job(Priority.BATCH), job(Priority.URGENT)

    outcome = report(
        (batch, record(batch, JobState.SUCCEEDED, waited_s=3.0, tokens=30)),
        (urgent, record(urgent, JobState.SUCCEEDED, waited_s=0.25, tokens=10)),
    )

    assert outcome.flawless
    assert outcome.as_json() == {
        "services": "two tins and a string",
        "jobs": 2,
        "succeeded": 2,
        "failed": 0,
        "lost": 0,
        "duration_s": 4.0,
        "tokens_per_s": 10.0,
        "wait_s": {
            "urgent": {"count": 1, "p50": 0.25, "p99": 0.25},
            "batch": {"count": 1, "p50": 3.0, "p99": 3.0},
        },
    }
    assert "2 of 2 jobs succeeded, 0 failed; nothing lost" in text_of(outcome)


def test_the_most_urgent_come_first() -> None:
    jobs = [job(priority) for priority in (Priority.NORMAL, Priority.URGENT, Priority.BATCH, Priority.HIGH)]

    outcome = report(*((job, record(job, JobState.SUCCEEDED)) for job in jobs))

    assert list(outcome.waits) == ["urgent", "high", "normal", "batch"]


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
def test_every_end_but_success_is_a_failure_and_the_first_is_told(state: JobState) -> None:
    only = job(Priority.NORMAL)

    outcome = report((only, record(only, state)))

    assert (outcome.succeeded, outcome.failed, outcome.lost) == (0, 1, 0)
    assert not outcome.flawless
    assert f"the first failure: job {only.id}, timeout: too slow" in " ".join(text_of(outcome).split())


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_a_job_without_a_terminal_result_is_lost(state: JobState) -> None:
    only = job(Priority.NORMAL)

    outcome = report((only, record(only, state)))

    assert (outcome.succeeded, outcome.failed, outcome.lost) == (0, 0, 1)
    assert not outcome.flawless
    assert "1 LOST" in text_of(outcome)


def test_a_job_without_a_record_is_lost() -> None:
    assert report((job(Priority.NORMAL), None)).lost == 1


def test_a_job_that_was_never_submitted_is_lost() -> None:
    assert report(total=3).lost == 3


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([5.0], 0.5, 5.0), ([3.0, 1.0, 2.0], 0.5, 2.0), ([4.0, 3.0, 1.0, 2.0], 0.5, 2.0)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_the_99th_percentile_of_a_hundred_leaves_out_the_worst() -> None:
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0
