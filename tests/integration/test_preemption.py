"""An urgent job does not wait for a slot: another job gives it its own, and goes on later."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    INSTANT,
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    assert_whole,
    chat,
    eventually,
    journal_of,
    slow_chat,
    text_of,
    until_running,
    until_tokens,
)
from tests.integration.test_model_swap import Swapped, assert_of_one_model, identity

from inferfleet.local.services.free_port import free_port
from inferfleet.producer import Fleet
from inferfleet.producer.timeline import EventKind
from inferfleet.schemas import FailureCode, Job, JobState, Priority, Result
from inferfleet.schemas.errors import JobNotFoundError
from inferfleet.schemas.model_swap import SwapState
from inferfleet.schemas.names import job_key
from inferfleet.wire.redis import job_listing
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.urgent import RETRY_INTERVAL_S, TRIES, UrgentJobs

STEP_S = 0.02
LONG = 150
"""Tokens of an answer that takes 3 s."""


def one_slot(**changes: Any) -> dict[str, Any]:
    """The settings of a worker with one slot, whose job may be preempted at once."""
    return {"max_running": 1, "preempt_min_run_s": 0.0, "heartbeat_interval_s": 0.05, **changes}


def long_chat(name: str, **more: Any) -> dict[str, Any]:
    return slow_chat(name, tokens=LONG, step_s=STEP_S, **more)


def endless_chat(name: str) -> dict[str, Any]:
    return slow_chat(name, tokens=100_000, step_s=STEP_S)


def urgent_chat() -> dict[str, Any]:
    return slow_chat("urgent", tokens=3, step_s=STEP_S)


async def until_full(fleet: Fleet, *, running: int, held: int = 0) -> None:
    async def is_full() -> bool:
        return any((it.running, it.held) == (running, held) for it in await fleet.workers())

    await eventually(is_full)


def text_in(result: Result) -> str:
    assert result.response is not None
    return str(result.response["choices"][0]["message"]["content"])


async def ends(fleet: Fleet, jobs: list[Job]) -> list[Job]:
    """The jobs in the order of their ends."""
    order = [result.job_id async for result in fleet.as_completed(jobs, timeout_s=PATIENCE_S)]
    return sorted(jobs, key=lambda job: order.index(job.id))


@pytest.mark.parametrize("look_ahead", [0, 8])
@pytest.mark.parametrize("backlog", [0, 20])
async def test_an_urgent_job_ends_before_the_ones_that_ran(
    fleet: Fleet, pool: str, start_worker: StartWorker, look_ahead: int, backlog: int, store: aioredis.Redis
) -> None:
    """With a backlog and a full prefetch, RabbitMQ delivers nothing by itself."""
    await start_worker(max_running=2, look_ahead=look_ahead, preempt_min_run_s=0.0, heartbeat_interval_s=0.05)
    first = await fleet.submit_many([long_chat(f"first {i}") for i in range(2)], pool=pool)
    for job in first:
        await until_tokens(fleet, job)
    waiting = await fleet.submit_many([chat(f"waiting {i}") for i in range(backlog)], pool=pool)
    await until_full(fleet, running=2, held=min(look_ahead, backlog))
    urgent = await fleet.submit(urgent_chat(), pool=pool, priority=Priority.URGENT)
    assert (await ends(fleet, [*first, *waiting, urgent]))[0] is urgent
    for result, job in zip(await fleet.wait_many([*first, urgent]), [*first, urgent], strict=True):
        assert (result.state, result.attempts) == (JobState.SUCCEEDED, 1)
        assert text_in(result) == answer_to(job)
        entries = await journal_of(store, job)
        assert_whole(entries)
        assert text_of(entries) == answer_to(job)


class Held:
    """A running urgent job that keeps the only slot, and the job that it has preempted."""

    def __init__(self, fleet: Fleet, pool: str) -> None:
        self._fleet = fleet
        self._pool = pool
        self.urgent: Job

    async def preempt(self, body: dict[str, Any], **options: Any) -> Job:
        """Submit a job, and let an urgent one preempt it once it has tokens."""
        job = await self._fleet.submit(body, pool=self._pool, **options)
        await until_tokens(self._fleet, job)
        self.urgent = await self._fleet.submit(
            slow_chat("urgent", tokens=3, step_s=STEP_S, hang=True), pool=self._pool, priority=9
        )
        await until_running(self._fleet, self.urgent)
        assert EventKind.PREEMPTED in await self.story(job)
        return job

    async def release(self) -> None:
        """End the urgent job."""
        await self._fleet.cancel(self.urgent)

    async def story(self, job: Job) -> list[EventKind]:
        return [event.kind for event in await self._fleet.timeline(job)]


@pytest.fixture
def held(fleet: Fleet, pool: str) -> Held:
    return Held(fleet, pool)


async def test_the_story_of_a_preempted_job_says_so(
    fleet: Fleet, held: Held, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    await start_worker(**one_slot())
    job = await held.preempt(long_chat("preempted"))
    await held.release()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    story = await held.story(job)
    assert story == ["queued", "started", "tokens", "preempted", "resumed", "tokens", "finished"]
    entries = await journal_of(store, job)
    assert_whole(entries)
    assert text_of(entries) == answer_to(job)


async def test_a_preempted_job_keeps_its_lease(
    fleet: Fleet, held: Held, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    """Otherwise another worker would take it from this one."""
    await start_worker(**one_slot(), lease_s=1)
    job = await held.preempt(long_chat("preempted"))

    async def lease() -> int:
        return int(await store.hget(job_key(job.id), "lease") or 0)

    first = await lease()

    async def renewed() -> bool:
        return await lease() > first + 2000

    await eventually(renewed)
    await held.release()
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.attempts) == (JobState.SUCCEEDED, 1)


async def test_the_time_limit_of_a_job_does_not_run_while_it_is_preempted(
    fleet: Fleet, held: Held, start_worker: StartWorker
) -> None:
    await start_worker(**one_slot())
    job = await held.preempt(long_chat("limited"), timeout_s=6)
    began = time.monotonic()

    async def past_its_limit() -> bool:
        return time.monotonic() - began > 6

    await eventually(past_its_limit)
    await held.release()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_the_time_limit_of_a_job_goes_on_when_it_is_resumed(
    fleet: Fleet, held: Held, start_worker: StartWorker
) -> None:
    await start_worker(**one_slot())
    job = await held.preempt(slow_chat("limited", tokens=500, step_s=STEP_S), timeout_s=4)
    await held.release()
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.error is not None
    assert result.error.code is FailureCode.TIMEOUT


async def test_a_preempted_job_can_be_cancelled(fleet: Fleet, held: Held, start_worker: StartWorker) -> None:
    await start_worker(**one_slot())
    job = await held.preempt(long_chat("preempted"))
    await fleet.cancel(job)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.CANCELLED
    assert answer_to(job).startswith(text_in(result))
    assert (await fleet.get(held.urgent)).state is JobState.RUNNING
    # The slot is free for the next one.
    await held.release()
    assert (await fleet.run(chat(), pool=job.pool, wait_timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


@pytest.mark.parametrize("how", ["drain", "pause"])
async def test_a_preempted_job_is_handed_over(
    fleet: Fleet, pool: str, held: Held, start_worker: StartWorker, how: str
) -> None:
    worker = await start_worker(**one_slot(), drain_timeout_s=PATIENCE_S)
    job = await held.preempt(long_chat("preempted"))
    if how == "drain":
        worker.worker.stop()
    else:
        await fleet.pause_pool(pool)

    async def is_queued() -> bool:
        return (await fleet.get(job)).state is JobState.QUEUED

    await eventually(is_queued)
    assert (await fleet.get(held.urgent)).state is JobState.RUNNING
    await held.release()
    if how == "drain":
        await start_worker(**one_slot())
    else:
        await fleet.resume_pool(pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.attempts) == (JobState.SUCCEEDED, 1)
    assert text_in(result) == answer_to(job)


async def test_a_preempted_job_of_a_worker_that_is_killed_is_resumed(
    fleet: Fleet,
    held: Held,
    start_worker: StartWorker,
    start_worker_process: StartWorkerProcess,
    store: aioredis.Redis,
) -> None:
    worker = await start_worker_process("--max-running", "1", lease_s="1", preempt_min_run_s="0")
    job = await held.preempt(long_chat("preempted"))
    worker.signal(signal.SIGKILL)
    await worker.ended()
    await held.release()
    await start_worker(**one_slot())
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.SUCCEEDED
    assert text_in(result) == answer_to(job)
    entries = await journal_of(store, job)
    assert_whole(entries)
    assert not [entry for entry in entries if entry.kind == "restarted"]


async def test_a_swap_of_the_model_keeps_the_answer_of_a_preempted_job(
    fleet: Fleet, pool: str, held: Held, start_worker: StartWorker, foreign: ForeignClient
) -> None:
    """It goes on with the old model, which stays until then."""
    # With room for the probe beside the urgent job.
    engine = SimulatedEngine(model="simulated", max_running=2, engine_args=INSTANT)
    await start_worker(engine, **one_slot(), worker_id=f"{pool}-w")
    swapped = Swapped(fleet, foreign, f"{pool}-w")
    job = await held.preempt(long_chat("preempted"))
    await swapped.order()
    await swapped.until(lambda it: it.swap is not None and it.swap.state is SwapState.SWITCHED)
    await held.release()
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.SUCCEEDED
    assert result.model_identity == identity(weights=0)
    assert_of_one_model(job, result)


# Limits


@pytest.mark.parametrize(
    ("settings", "low", "urgent"),
    [
        pytest.param({"preempt_from": 10}, {}, 9, id="off"),
        pytest.param({"preempt_from": 8}, {}, 7, id="not urgent"),
        pytest.param({"preempt_from": 5}, {}, 9, id="of the same class"),
        pytest.param({"preempt_min_run_s": 3600}, {}, 9, id="too young"),
        pytest.param({"preempt_limit": 0}, {}, 9, id="too often"),
        pytest.param({}, {"n": 2}, 9, id="not resumable"),
        pytest.param({}, {"seed": 1}, 9, id="seeded"),
    ],
)
async def test_a_job_is_not_preempted(
    fleet: Fleet,
    pool: str,
    start_worker: StartWorker,
    settings: dict[str, Any],
    low: dict[str, Any],
    urgent: int,
) -> None:
    await start_worker(**one_slot(**settings))
    running = await fleet.submit(slow_chat("low", tokens=50, step_s=STEP_S) | low, pool=pool, priority=5)
    await until_tokens(fleet, running)
    waiting = await fleet.submit(urgent_chat(), pool=pool, priority=urgent)
    assert await ends(fleet, [running, waiting]) == [running, waiting]
    assert "preempted" not in [event.kind for event in await fleet.timeline(running)]


async def test_a_job_is_preempted_once_it_has_run_long_enough(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    await start_worker(**one_slot(preempt_min_run_s=2.0))
    running = await fleet.submit(slow_chat("low", tokens=500, step_s=STEP_S), pool=pool)
    await until_tokens(fleet, running)
    urgent = await fleet.submit(urgent_chat(), pool=pool, priority=9)
    assert (await fleet.wait(urgent, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    await fleet.cancel(running)


async def test_a_job_is_preempted_as_often_as_the_limit_says(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    await start_worker(**one_slot(preempt_limit=2))
    low = await fleet.submit(long_chat("low"), pool=pool)
    await until_tokens(fleet, low)
    urgent = [await fleet.submit(urgent_chat(), pool=pool, priority=9)]
    for number in (1, 2):
        await fleet.wait(urgent[-1], timeout_s=PATIENCE_S)

        async def runs_again(number: int = number) -> bool:
            return [event.kind for event in await fleet.timeline(low)].count(EventKind.RESUMED) == number

        await eventually(runs_again)
        urgent.append(await fleet.submit(urgent_chat(), pool=pool, priority=9))
    assert (await ends(fleet, [low, urgent[-1]]))[0] is low
    kinds = [event.kind for event in await fleet.timeline(low)]
    assert kinds.count(EventKind.PREEMPTED) == 2
    assert text_in(await fleet.wait(low)) == answer_to(low)


async def test_the_least_urgent_job_is_preempted(fleet: Fleet, pool: str, start_worker: StartWorker) -> None:
    port = free_port()
    await start_worker(**one_slot(max_running=3), http_port=port)
    jobs = [await fleet.submit(long_chat(str(it)), pool=pool, priority=it) for it in (4, 1, 7)]
    for job in jobs:
        await until_tokens(fleet, job)
    await fleet.run(urgent_chat(), pool=pool, priority=9, wait_timeout_s=PATIENCE_S)
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    stories = [[event.kind for event in await fleet.timeline(job)] for job in jobs]
    assert [EventKind.PREEMPTED in story for story in stories] == [False, True, False]
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as answer:
        assert f'inferfleet_preemptions_total{{pool="{pool}"}} 1.0' in await answer.text()


async def test_an_urgent_job_behind_many_that_other_workers_run_is_found(
    fleet: Fleet, pool: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them enter the index at once, and it is read in pages."""
    monkeypatch.setattr(job_listing, "PAGE", 20)
    others = 40
    await start_worker(**one_slot(look_ahead=0))
    low = await fleet.submit(endless_chat("low"), pool=pool)
    await until_tokens(fleet, low)
    await start_worker(**one_slot(max_running=others, look_ahead=0))
    # It consumes.
    await fleet.run(chat(), pool=pool, wait_timeout_s=PATIENCE_S)
    bodies = [
        slow_chat(f"urgent {number}", tokens=1, step_s=STEP_S, hang=True) for number in range(others + 1)
    ]
    urgent = await fleet.submit_many(bodies, pool=pool, priority=9)

    async def all_run() -> bool:
        records = await fleet.get_many(urgent)
        return {record.state for record in records.values() if record is not None} == {JobState.RUNNING}

    await eventually(all_run)
    assert EventKind.PREEMPTED in [event.kind for event in await fleet.timeline(low)]
    await asyncio.gather(*map(fleet.cancel, [low, *urgent]))


async def test_an_urgent_job_that_a_worker_puts_back_preempts_elsewhere(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    await start_worker(**one_slot(look_ahead=0))
    low = await fleet.submit(endless_chat("low"), pool=pool)
    await until_tokens(fleet, low)
    other = await start_worker(**one_slot(look_ahead=0), drain_timeout_s=0)
    # It consumes.
    await fleet.run(chat(), pool=pool, wait_timeout_s=PATIENCE_S)
    urgent = await fleet.submit(
        slow_chat("urgent", tokens=1, step_s=STEP_S, hang=True), pool=pool, priority=9
    )
    await until_running(fleet, urgent)
    # Longer than the worker with the other job tries to get this one.
    await asyncio.sleep(2 * TRIES * RETRY_INTERVAL_S)
    assert EventKind.PREEMPTED not in [event.kind for event in await fleet.timeline(low)]
    other.worker.stop()

    async def is_preempted() -> bool:
        return EventKind.PREEMPTED in [event.kind for event in await fleet.timeline(low)]

    await eventually(is_preempted)
    await asyncio.gather(*map(fleet.cancel, [low, urgent]))


@pytest.fixture
async def full_worker(fleet: Fleet, pool: str, start_worker: StartWorker) -> AsyncIterator[Job]:
    """The running job of a worker whose prefetch and engine are full, so that RabbitMQ delivers nothing."""
    await start_worker(**one_slot(look_ahead=0, preempt_from=7))
    low = await fleet.submit(endless_chat("low"), pool=pool)
    await until_tokens(fleet, low)
    yield low
    await fleet.cancel(low)


@pytest.mark.parametrize("announce_from", [9, 7])
async def test_a_full_worker_takes_an_urgent_job_as_soon_as_it_is_announced(
    connect: Connect,
    pool: str,
    full_worker: Job,
    monkeypatch: pytest.MonkeyPatch,
    announce_from: int,
) -> None:
    async def nothing(*_: object) -> list[job_listing.Entry]:
        return []

    # It does not find the job in the index.
    monkeypatch.setattr(UrgentJobs, "_unfinished", nothing)
    async with connect(preempt_from=announce_from) as fleet:
        urgent = await fleet.run(urgent_chat(), pool=pool, priority=announce_from, wait_timeout_s=PATIENCE_S)
        assert urgent.state is JobState.SUCCEEDED
        assert EventKind.PREEMPTED in [event.kind for event in await fleet.timeline(full_worker)]


async def test_a_full_worker_finds_an_urgent_job_that_nobody_has_announced(
    connect: Connect, pool: str, full_worker: Job
) -> None:
    async with connect(preempt_from=10) as fleet:
        urgent = await fleet.run(urgent_chat(), pool=pool, priority=8, wait_timeout_s=PATIENCE_S)
        assert urgent.state is JobState.SUCCEEDED
        assert EventKind.PREEMPTED in [event.kind for event in await fleet.timeline(full_worker)]


async def test_a_publisher_in_another_language_announces_its_urgent_jobs(
    fleet: Fleet, pool: str, full_worker: Job, foreign: ForeignClient
) -> None:
    job = Job(pool=pool, priority=9, body=urgent_chat())
    await foreign.publish(job.model_dump_json().encode(), priority=9)
    await foreign.channel.basic_publish(
        json.dumps({"kind": "urgent", "job_id": job.id}).encode(),
        exchange="inferfleet.jobs",
        routing_key=f"{pool}:urgent",
    )

    async def has_ended() -> bool:
        # Its record is made when it starts.
        with suppress(JobNotFoundError):
            return (await fleet.get(job.id)).state is JobState.SUCCEEDED
        return False

    await eventually(has_ended)
    assert EventKind.PREEMPTED in [event.kind for event in await fleet.timeline(full_worker)]
