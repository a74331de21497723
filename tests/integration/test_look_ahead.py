"""What a worker holds ready has not started: an urgent job overtakes it, and no time limit of its runs."""

from __future__ import annotations

import pytest
from tests.integration.conftest import PATIENCE_S, StartWorker, StartWorkerProcess, eventually, slow_chat

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState, Priority
from inferfleet.schemas.journal import RunningEntry
from inferfleet.worker import slots
from inferfleet.worker.broker import Subscription

LOOK_AHEAD = 8

STEP_S = 0.02

WITHOUT_PATIENCE = "import inferfleet.worker.slots as slots; slots.REFILL_PATIENCE_S = 0"
"""A free slot is given away at once, even if a delivery is due."""


def long_chat(name: str) -> dict[str, object]:
    return slow_chat(name, tokens=25, step_s=STEP_S)


async def until_full(fleet: Fleet, held: int = LOOK_AHEAD) -> None:
    """Wait until a worker runs one job and holds others ready."""

    async def is_full() -> bool:
        workers = await fleet.workers()
        return any((worker.running, worker.held) == (1, held) for worker in workers)

    await eventually(is_full)


async def starts(fleet: Fleet, jobs: list[Job]) -> list[str]:
    """The jobs in the order in which their first attempts began."""
    began = {
        job.id: min(
            [line.entry.at async for line in fleet.stream(job) if isinstance(line.entry, RunningEntry)]
        )
        for job in jobs
    }
    return sorted(began, key=lambda job_id: began[job_id])


@pytest.mark.parametrize("patience_s", [PATIENCE_S, slots.REFILL_PATIENCE_S], ids=["patient", "as it is"])
async def test_an_urgent_job_waits_for_the_one_that_runs_and_for_no_other(
    fleet: Fleet, pool: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    """A full look-ahead: the broker can give the urgent jobs out only when the one that runs has ended."""
    # The broker of a busy machine may take longer to deliver than a worker waits, who says so.
    dry: list[Subscription] = []
    ran_dry = Subscription.ran_dry
    monkeypatch.setattr(slots, "REFILL_PATIENCE_S", patience_s)
    monkeypatch.setattr(Subscription, "ran_dry", lambda session: (dry.append(session), ran_dry(session)))
    first = await fleet.submit(slow_chat("first", tokens=10, step_s=STEP_S, hang=True), pool=pool)
    await start_worker(max_running=1, look_ahead=LOOK_AHEAD, heartbeat_interval_s=0.05, preempt_from=10)
    await until_full(fleet, held=0)
    low = await fleet.submit_many([long_chat(f"low {i}") for i in range(12)], pool=pool, priority=1)
    await until_full(fleet)
    urgent = [await fleet.submit(long_chat(f"urgent {i}"), pool=pool, priority=9) for i in range(2)]
    await fleet.cancel(first)
    await fleet.wait_many(urgent, timeout_s=PATIENCE_S)
    if dry:
        pytest.skip(f"the broker took longer than {patience_s} s to deliver")
    first_urgent, second_urgent = [(await fleet.get(job)).started_at for job in urgent]
    began = [
        record.started_at for record in (await fleet.get_many(low)).values() if record and record.started_at
    ]
    assert first_urgent is not None
    assert second_urgent is not None
    assert first_urgent < second_urgent
    assert all(second_urgent <= started_at for started_at in began)


async def test_jobs_that_a_worker_holds_ready_are_queued(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    jobs = await fleet.submit_many([long_chat(str(i)) for i in range(9)], pool=pool)
    await start_worker(max_running=1, look_ahead=LOOK_AHEAD, heartbeat_interval_s=0.05)
    await until_full(fleet)
    records = [record for record in (await fleet.get_many(jobs)).values() if record]
    assert [record.state for record in records if record.attempt == 0] == [JobState.QUEUED] * 8
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    waits = [result.timings.queue_wait_s for result in results if result.timings]
    assert waits == sorted(waits)
    # One after the other: the last has waited for eight answers of 25 steps each.
    assert waits[-1] >= 8 * 25 * STEP_S
    assert all(
        result.timings and result.timings.generation_s < result.timings.total_s for result in results[1:]
    )


async def test_a_time_limit_does_not_run_while_a_job_waits_in_a_worker(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    before = await fleet.submit(slow_chat("first", tokens=150, step_s=STEP_S), pool=pool)
    limited = await fleet.submit(slow_chat("limited", tokens=2, step_s=STEP_S), pool=pool, timeout_s=2)
    await start_worker(max_running=1, look_ahead=LOOK_AHEAD)
    first, second = await fleet.wait_many([before, limited], timeout_s=PATIENCE_S)
    assert (first.state, second.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert second.timings is not None
    assert second.timings.queue_wait_s > 2


async def test_a_held_job_that_is_cancelled_never_starts(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    jobs = await fleet.submit_many([long_chat(str(i)) for i in range(3)], pool=pool)
    await start_worker(max_running=1, look_ahead=LOOK_AHEAD, heartbeat_interval_s=0.05)
    await until_full(fleet, held=2)
    assert await fleet.cancel(jobs[1]) is JobState.CANCELLED
    states = [result.state for result in await fleet.wait_many(jobs, timeout_s=PATIENCE_S)]
    assert states == [JobState.SUCCEEDED, JobState.CANCELLED, JobState.SUCCEEDED]
    assert (await fleet.get(jobs[1])).attempt == 0


async def test_a_worker_that_leaves_gives_back_what_it_holds_unstarted(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    jobs = await fleet.submit_many([long_chat(str(i)) for i in range(6)], pool=pool)
    worker = await start_worker(
        max_running=1, look_ahead=LOOK_AHEAD, heartbeat_interval_s=0.05, drain_timeout_s=PATIENCE_S
    )
    await until_full(fleet, held=5)
    await worker.stop()
    records = [record for record in (await fleet.get_many(jobs)).values() if record]
    ended = [record for record in records if record.state is JobState.SUCCEEDED]
    assert [record.attempt for record in records if record.state is JobState.QUEUED] == [0] * (6 - len(ended))
    assert len(ended) < 6
    await start_worker()
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert {(result.state, result.attempts) for result in results} == {(JobState.SUCCEEDED, 1)}


async def test_what_a_worker_holds_is_taken_in_order_of_priority(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    first = await fleet.submit(long_chat("first"), pool=pool, priority=Priority.NORMAL)
    await start_worker(max_running=1, look_ahead=LOOK_AHEAD, heartbeat_interval_s=0.05)
    await until_full(fleet, held=0)
    mixed = [await fleet.submit(long_chat(str(i)), pool=pool, priority=i) for i in (2, 8, 0, 5)]
    await fleet.wait_many([first, *mixed], timeout_s=PATIENCE_S)
    priorities = {job.id: job.priority for job in [first, *mixed]}
    assert [priorities[job_id] for job_id in await starts(fleet, [first, *mixed])] == [4, 8, 5, 2, 0]


async def test_an_engine_that_dies_costs_the_jobs_that_wait_no_attempt(
    fleet: Fleet, pool: str, start_worker_process: StartWorkerProcess
) -> None:
    killer = await fleet.submit(
        slow_chat("killer", tokens=5, step_s=STEP_S, after_tokens=2, kill_engine=True), pool=pool, priority=9
    )
    jobs = await fleet.submit_many([long_chat(str(i)) for i in range(4)], pool=pool, max_attempts=1)
    worker = await start_worker_process(
        "--max-running", "1", "--look-ahead", str(LOOK_AHEAD), preamble=WITHOUT_PATIENCE
    )
    assert await worker.ended() != 0
    assert (await fleet.get(killer)).attempt == 1
    records = [record for record in (await fleet.get_many(jobs)).values() if record]
    assert [record.attempt for record in records] == [0] * 4
