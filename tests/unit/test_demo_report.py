"""The demo's report: what it counts, and how it says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console

from inferfleet.local.demo.progress import Kill, Passage, UrgentStream
from inferfleet.local.demo.report import Report, percentile, report_on
from inferfleet.schemas import Failure, FailureCode, Result, Timings, Usage
from inferfleet.schemas.job import Job, JobState, Priority
from inferfleet.schemas.journal import JournalEntry, QueuedEntry, RunningEntry
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


def report(
    *records: tuple[Job, JobRecord | None],
    total: int | None = None,
    urgent: UrgentStream | None = None,
    journals: Mapping[str, Sequence[JournalEntry]] | None = None,
    tokens_generated: int = 0,
) -> Report:
    return report_on(
        [job for job, _ in records],
        {job.id: record for job, record in records},
        journals=journals or {},
        urgent=urgent,
        killed="worker 1",
        total=len(records) if total is None else total,
        tokens_generated=tokens_generated,
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
        "tokens": 40,
        "tokens_per_s": 10.0,
        "tokens_paid_twice": 0,
        "killed": None,
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


def interrupted(*, resumed_from: int, began_again: bool = False) -> UrgentStream:
    """A stream of which a reader had seen 30 tokens when its worker was killed."""
    return UrgentStream(
        passages=[Passage("a"), Passage("b", resumed_from)],
        tokens=100,
        kill=Kill("a", tokens_seen=30, at_s=1.0),
        resumed_s=4.5,
        began_again=began_again,
    )


def journal(*, resumed_from: int) -> list[JournalEntry]:
    """The journal of a job that started after 2 s, and again on another worker after 9 s."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        QueuedEntry(at=at),
        RunningEntry(at=at + timedelta(seconds=2), attempt=1, worker_id="a"),
        RunningEntry(at=at + timedelta(seconds=9), attempt=2, worker_id="b", resumed_from=resumed_from),
    ]


def test_after_a_kill_the_table_says_what_was_kept_and_what_was_paid_twice() -> None:
    urgent, batch = job(Priority.URGENT), job(Priority.BATCH)

    outcome = report(
        (urgent, record(urgent, JobState.SUCCEEDED, tokens=100)),
        (batch, record(batch, JobState.SUCCEEDED, tokens=1900)),
        urgent=interrupted(resumed_from=33),
        journals={urgent.id: journal(resumed_from=33), batch.id: journal(resumed_from=500)},
        tokens_generated=2045,
    )

    assert outcome.flawless
    assert outcome.as_json()["tokens_paid_twice"] == 45
    assert outcome.as_json()["killed"] == {
        "worker": "worker 1",
        "tokens_seen": 30,
        "tokens_seen_twice": 0,
        "pause_s": 3.5,
        "jobs_resumed": 2,
        "tokens_kept": 533,
    }
    text = " ".join(text_of(outcome).split())
    assert "worker 1 was killed in mid-answer" in text
    assert "answers that another worker finished 2" in text
    assert "tokens kept in their journals 533" in text
    assert "tokens paid twice 45 of 2,045" in text
    assert "of those that a reader had seen 0 of 30" in text


def test_a_job_that_ran_twice_waited_until_its_first_start() -> None:
    only = job(Priority.NORMAL)

    outcome = report(
        (only, record(only, JobState.SUCCEEDED, waited_s=9.0)), journals={only.id: journal(resumed_from=1)}
    )

    assert outcome.waits["normal"].p50 == 2.0


@pytest.mark.parametrize(
    ("urgent", "twice"),
    [(interrupted(resumed_from=29), 1), (interrupted(resumed_from=0, began_again=True), 30)],
)
def test_an_answer_that_loses_what_its_reader_had_seen_is_no_success(
    urgent: UrgentStream, twice: int
) -> None:
    only = job(Priority.URGENT)

    outcome = report((only, record(only, JobState.SUCCEEDED)), urgent=urgent)

    assert outcome.takeover is not None
    assert outcome.takeover.seen_twice == twice
    assert not outcome.flawless
    assert "did NOT go on" in text_of(outcome)


def test_a_worker_that_is_killed_behind_the_last_token_takes_nothing_with_it() -> None:
    only = job(Priority.URGENT)
    ended = UrgentStream(passages=[Passage("a")], tokens=30, kill=Kill("a", tokens_seen=30, at_s=1.0))

    assert report((only, record(only, JobState.SUCCEEDED)), urgent=ended).flawless


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([5.0], 0.5, 5.0), ([3.0, 1.0, 2.0], 0.5, 2.0), ([4.0, 3.0, 1.0, 2.0], 0.5, 2.0)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_the_99th_percentile_of_a_hundred_leaves_out_the_worst() -> None:
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0
