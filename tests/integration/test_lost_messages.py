"""Jobs whose messages RabbitMQ has lost, or whose ends Redis has lost, run again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    chat,
    eventually,
    journal_of,
    kinds_of,
    slow_chat,
    until_tokens,
)
from tests.integration.test_pool_pause import until_waiting
from tests.integration.test_stalled_jobs import stall

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import PublishUnconfirmedError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import JournalEntry, QueuedEntry
from inferfleet.schemas.message import message_body
from inferfleet.schemas.names import (
    held_key,
    job_key,
    job_queue,
    journal_key,
    open_key,
    request_key,
    result_key,
    sweep_key,
)
from inferfleet.wire.redis import open_jobs
from inferfleet.wire.redis.lost_messages import LostMessages, OpenJob
from inferfleet.wire.redis.open_jobs import OpenJobs
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pipelined_connection import PipelinedConnection
from inferfleet.wire.redis.records import JobRecords
from inferfleet.worker import sweep

SWEEP_S = 0.4
"""The interval of sweeps: what is lost for longer was found several times over."""


async def test_a_worker_says_that_a_sweep_takes_too_long(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def endless(self: sweep.Sweep, turn: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(sweep.Sweep, "_sweep_all", endless)
    await start_worker(sweep_interval_s=SWEEP_S)

    async def is_said() -> bool:
        return "a sweep takes more than 0.1 s, a quarter of INFERFLEET_SWEEP_INTERVAL_S" in caplog.text

    await eventually(is_said)


async def test_the_record_of_a_job_and_its_entry_in_the_index_are_one_write(
    records: JobRecords, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, sent = PipelinedConnection.send, list[int]()

    def count(self: PipelinedConnection, packed: Sequence[bytes]) -> None:
        sent.append(len(packed))
        send(self, packed)

    # A new connection writes more.
    await records.create(Job(pool=pool, body=chat()), reply_to="client", call="first")
    monkeypatch.setattr(PipelinedConnection, "send", count)
    await records.create(Job(pool=pool, body=chat()), reply_to="client", call="second")
    assert sent == [2]


async def open_in(store: aioredis.Redis, pool: str, priority: int = 4) -> set[str]:
    entries: list[Any] = await store.zrange(open_key(pool, priority), 0, -1)
    return {job_id.decode() for job_id in entries}


def was_republished(journal: list[JournalEntry]) -> bool:
    return any(isinstance(entry, QueuedEntry) and entry.republished for entry in journal)


async def test_an_accepted_job_is_open_and_its_request_is_kept_until_it_has_ended(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool, priority=7)
    assert await open_in(store, pool, 7) == {job.id}
    assert await store.get(request_key(job.id)) == message_body(job)
    assert await store.ttl(request_key(job.id)) > 600

    await start_worker()
    await fleet.wait(job, timeout_s=PATIENCE_S)

    async def is_closed() -> bool:
        return await open_in(store, pool, 7) == set()

    await eventually(is_closed)
    assert await store.exists(request_key(job.id)) == 0


async def test_a_worker_that_stops_leaves_no_ended_job_in_the_index(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_jobs, "LEAVE_S", 60.0)
    worker = await start_worker()
    await fleet.wait(await fleet.submit("hello", pool=pool), timeout_s=PATIENCE_S)
    await worker.stop()
    assert await open_in(store, pool) == set()


async def test_a_cancelled_job_leaves_neither_an_entry_nor_its_request(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await fleet.cancel(job)

    async def is_closed() -> bool:
        return await open_in(store, pool) == set()

    await eventually(is_closed)
    assert await store.exists(request_key(job.id)) == 0


@pytest.mark.parametrize("loss", ["purge", "delete"])
async def test_jobs_whose_queue_is_emptied_end_once_while_those_that_run_go_on(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    loss: str,
) -> None:
    worker = await start_worker(max_running=2, look_ahead=0, sweep_interval_s=SWEEP_S)
    running = [
        await fleet.submit(slow_chat(f"running {n}", tokens=40, step_s=0.1), pool=pool) for n in range(2)
    ]
    for job in running:
        await until_tokens(fleet, job)
    waiting = await fleet.submit_many(
        Job(pool=pool, body=chat(f"waiting {n}"), priority=n % 3, idempotency_key=f"{pool}-{n}")
        for n in range(40)
    )
    if loss == "purge":
        await foreign.channel.queue_purge(job_queue(pool))
    else:
        await foreign.channel.queue_delete(job_queue(pool))
    again = await fleet.submit(waiting[0].model_copy(update={"id": new_job_id()}))
    assert again.id == waiting[0].id

    results = await fleet.wait_many([*running, *waiting], timeout_s=PATIENCE_S)

    for job, result in zip([*running, *waiting], results, strict=True):
        assert (result.state, result.text) == (JobState.SUCCEEDED, answer_to(job))
        journal = await journal_of(store, job)
        kinds = kinds_of(journal)
        assert kinds.count("finished") == kinds.count("running") == 1
        assert was_republished(journal) is (job in waiting)
    assert not worker.running.done()


async def test_a_job_that_is_lost_between_others_is_found_by_those_that_came_later(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """The queue is never seen empty."""
    lost = await fleet.submit("lost", pool=pool)
    message = await foreign.channel.basic_get(job_queue(pool), no_ack=True)
    assert message.header.properties.message_id == lost.id
    await start_worker(max_running=1, look_ahead=0, sweep_interval_s=SWEEP_S)
    stopping = asyncio.Event()

    async def keep_busy() -> None:
        backlog = [await fleet.submit(slow_chat("busy", tokens=1, step_s=0.02), pool=pool) for _ in range(50)]
        while not stopping.is_set():
            backlog.append(await fleet.submit(slow_chat("busy", tokens=1, step_s=0.02), pool=pool))
            await fleet.wait(backlog.pop(0), timeout_s=PATIENCE_S)

    busy = asyncio.create_task(keep_busy())
    assert (await fleet.wait(lost, timeout_s=PATIENCE_S)).text == answer_to(lost)
    stopping.set()
    await busy
    assert was_republished(await journal_of(store, lost))


async def busy(fleet: Fleet, start_worker: StartWorker, pool: str) -> Job:
    """Start a worker, and a job that keeps it busy. What is submitted next waits in the queue."""
    await start_worker(max_running=1, look_ahead=0, sweep_interval_s=SWEEP_S)
    running = await fleet.submit(slow_chat(tokens=10_000, step_s=0.05), pool=pool)
    await until_tokens(fleet, running)
    return running


async def swept(store: aioredis.Redis, pool: str, times: int) -> None:
    """Wait for so many sweeps."""
    sweepers: set[Any] = set()

    async def is_swept() -> bool:
        sweepers.add(await store.hget(sweep_key(pool), "sweeper"))
        return len(sweepers) > times

    await eventually(is_swept)


@pytest.mark.parametrize("ahead", [timedelta(days=1), timedelta(days=-1)], ids=["tomorrow", "yesterday"])
async def test_the_time_that_a_job_says_is_not_when_it_was_queued(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    ahead: timedelta,
) -> None:
    said = datetime.now(UTC) + ahead
    first = await fleet.submit(Job(pool=pool, body=chat("first"), submitted_at=said))
    running = await busy(fleet, start_worker, pool)
    await fleet.wait(first, timeout_s=PATIENCE_S)
    waiting = [await fleet.submit(Job(pool=pool, body=chat(f"{n}"), submitted_at=said)) for n in range(10)]
    await swept(store, pool, 12)
    assert not any([was_republished(await journal_of(store, job)) for job in waiting])

    await foreign.channel.queue_purge(job_queue(pool))
    await fleet.cancel(running)
    for job in waiting:
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


async def test_a_lost_job_is_found_while_those_of_a_lower_priority_start(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    lost = await fleet.submit("lost", pool=pool, priority=7)
    await foreign.channel.queue_purge(job_queue(pool))
    await fleet.submit_many([slow_chat(f"{n}", tokens=1, step_s=0.05) for n in range(300)], pool=pool)
    await start_worker(max_running=1, look_ahead=0, sweep_interval_s=SWEEP_S)
    assert (await fleet.wait(lost, timeout_s=PATIENCE_S)).text == answer_to(lost)
    assert await foreign.waiting() > 0, "the queue was never empty"


async def test_a_paused_pool_publishes_nothing_again_but_what_is_lost(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """Its workers have seen jobs that were submitted later than those that they give back."""
    options: dict[str, Any] = {"sweep_interval_s": SWEEP_S, "heartbeat_interval_s": 0.05, "max_running": 1}
    await start_worker(look_ahead=2, **options)
    first = await fleet.submit(slow_chat(tokens=10_000, step_s=0.05), pool=pool)
    await until_tokens(fleet, first)
    given_back = [await fleet.submit(f"{n}", pool=pool) for n in range(2)]
    await until_waiting(foreign, 0)
    await start_worker(worker_id=f"other-{pool}", look_ahead=0, **options)
    later = await fleet.submit(slow_chat(tokens=10_000, step_s=0.05), pool=pool)
    await until_tokens(fleet, later)
    await swept(store, pool, 12)

    await fleet.pause_pool(pool)
    await until_waiting(foreign, 2)

    async def forgotten() -> bool:
        return not any([await store.zscore(held_key(pool), job.id) for job in given_back])

    await eventually(forgotten)
    await swept(store, pool, 12)
    assert not any([was_republished(await journal_of(store, job)) for job in given_back])
    assert await foreign.waiting() == 2

    await foreign.channel.queue_purge(job_queue(pool))
    await swept(store, pool, 4)
    await fleet.resume_pool(pool)
    for job in (first, later):
        await fleet.cancel(job)
    for job in given_back:
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


async def test_a_turn_that_the_ended_ones_message_carries_says_nothing_of_the_queue(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    async with connect(queue_max_length=1) as fleet:
        await fleet.declare_pool(pool)
        session = fleet.session(f"s-{uuid4()}")
        body = {"simulated": {"tokens": 10_000, "step_delay_s": 0.05}}
        turn = await session.send("turn", body=body, pool=pool)
        await start_worker(max_running=1, look_ahead=0, sweep_interval_s=SWEEP_S, queue_max_length=1)
        await until_tokens(fleet, turn)
        waiting = await fleet.submit("fills the queue", pool=pool)
        for number in range(3):
            following = await session.send(f"turn {number}", body=body, pool=pool)
            await fleet.cancel(turn)
            await until_tokens(fleet, following)
            await swept(store, pool, 8)
            turn = following
        assert not was_republished(await journal_of(store, waiting))


async def test_a_turn_from_a_lane_is_at_the_end_of_the_queue(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    running = await busy(fleet, start_worker, pool)
    session = fleet.session(f"s-{uuid4()}")
    turns = [await session.send(f"turn {number}", pool=pool) for number in range(3)]
    others = [await fleet.submit(slow_chat(f"{n}", tokens=1, step_s=0.1), pool=pool) for n in range(40)]
    await fleet.cancel(running)
    await fleet.wait_many([*turns, *others], timeout_s=PATIENCE_S)
    assert not any([was_republished(await journal_of(store, job)) for job in [*turns, *others]])


async def test_a_sweep_reads_few_jobs_and_the_next_one_continues_behind_them(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep, "BATCH", 5)
    reads: list[int] = []
    read = LostMessages.open_jobs

    async def counted(lost_messages: LostMessages, priority: int, **options: Any) -> list[OpenJob]:
        jobs = await read(lost_messages, priority, **options)
        reads.append(len(jobs))
        return jobs

    monkeypatch.setattr(LostMessages, "open_jobs", counted)
    # Given turns in a lane, and a job submitted after them, whose message gets lost
    await start_worker(max_running=1, look_ahead=0, sweep_interval_s=SWEEP_S)
    session = fleet.session(f"s-{uuid4()}")
    first = await session.send("hi", body=slow_chat(tokens=10_000, step_s=0.1) | {"messages": []}, pool=pool)
    await until_tokens(fleet, first)
    for number in range(12):
        await session.send(f"turn {number}", pool=pool)
    lost = await fleet.submit("lost", pool=pool)
    await foreign.channel.queue_purge(job_queue(pool))

    # When a worker has room for it, then it runs
    await start_worker(max_running=1, look_ahead=0, sweep_interval_s=SWEEP_S)
    assert (await fleet.wait(lost, timeout_s=PATIENCE_S)).text == answer_to(lost)
    assert (await fleet.get(first)).state is JobState.RUNNING
    assert max(reads) == 5


async def test_the_index_loses_what_is_over(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(sweep_interval_s=SWEEP_S)
    ended = await fleet.submit("hello", pool=pool)
    await fleet.wait(ended, timeout_s=PATIENCE_S)

    async def has_left() -> bool:
        return not await open_in(store, pool, ended.priority)

    await eventually(has_left)
    # A worker that died after the commit leaves an entry, an older one the request; a record may have expired
    await store.zadd(open_key(pool, ended.priority), {ended.id: 1, new_job_id(): 1})
    await store.set(request_key(ended.id), "a prompt", ex=60)

    async def is_clean() -> bool:
        return not await open_in(store, pool, ended.priority) and not await store.exists(
            request_key(ended.id)
        )

    await eventually(is_clean)


async def test_the_index_loses_jobs_that_are_elsewhere_and_publishes_none_of_them(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    other_pool = f"{pool}-other"
    await fleet.declare_pool(other_pool)
    moved = await fleet.submit("hello", pool=other_pool)
    await start_worker(sweep_interval_s=SWEEP_S)
    running = await fleet.submit(slow_chat(tokens=100_000, step_s=0.02), pool=pool)
    await store.zadd(open_key(pool, moved.priority), {moved.id: 1})
    await store.zadd(open_key(pool, 7), {running.id: 1})

    async def are_in_their_places() -> bool:
        places = [await open_in(store, pool, priority) for priority in (running.priority, 7)]
        return places == [{running.id}, set()]

    await eventually(are_in_their_places)
    assert await open_in(store, other_pool, moved.priority) == {moved.id}
    assert (await fleet.get(moved)).state is JobState.QUEUED
    for job in (moved, running):
        assert not was_republished(await journal_of(store, job))
    await fleet.cancel(running)


async def test_a_job_that_is_elsewhere_in_the_index_does_not_enter_again_with_a_new_connection(
    pipeline: CommandPipeline, store: aioredis.Redis, pool: str
) -> None:
    index = OpenJobs(pipeline)
    job = Job(pool=pool, body=chat(), priority=1)
    for place in (job, job.model_copy(update={"priority": 7})):
        await index.enter(place)
    index.displace(job.id, pool=pool, priority=7)
    for connected in pipeline.on_connect:
        connected()

    async def is_in_one_place() -> bool:
        return [await open_in(store, pool, priority) for priority in (1, 7)] == [{job.id}, set()]

    await eventually(is_in_one_place)
    await pipeline.execute("PING")
    assert await is_in_one_place()


async def test_workers_bring_back_an_index_and_requests_that_redis_has_lost(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    running = [await fleet.submit(slow_chat(tokens=10_000, step_s=0.1), pool=pool) for _ in range(2)]
    # Before it starts
    await store.delete(request_key(running[0].id))
    await start_worker(max_running=2, sweep_interval_s=SWEEP_S)
    for job in running:
        await until_tokens(fleet, job)
    # While it runs, with all that is known of it
    await store.delete(*(f(running[1].id) for f in (job_key, journal_key, request_key)))
    await store.delete(open_key(pool, 4))

    async def is_back() -> bool:
        requests = [await store.get(request_key(job.id)) for job in running]
        return requests == [message_body(job) for job in running] and await open_in(store, pool) == {
            job.id for job in running
        }

    await eventually(is_back)


async def test_a_job_that_both_services_forget_in_turn_ends_if_it_had_started(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    start_worker_process: StartWorkerProcess,
    store: aioredis.Redis,
    pool: str,
) -> None:
    doomed = await start_worker_process(lease_s="1", sweep_interval_s=str(SWEEP_S))
    job = await fleet.submit(slow_chat(tokens=40, step_s=0.1), pool=pool)
    await until_tokens(fleet, job)
    await store.delete(*(f(job.id) for f in (job_key, journal_key, request_key)), open_key(pool, 4))

    async def is_back() -> bool:
        return await store.exists(request_key(job.id)) == 1 and await open_in(store, pool) == {job.id}

    await eventually(is_back)
    await foreign.channel.queue_delete(job_queue(pool))
    doomed.signal(signal.SIGKILL)
    await start_worker(lease_s=1, sweep_interval_s=SWEEP_S)

    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    journal = await journal_of(store, job)
    assert kinds_of(journal).count("finished") == 1
    assert was_republished(journal)


async def test_without_kept_requests_a_worker_says_what_it_cannot_bring_back(
    connect: Connect,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connect(keep_requests=False) as fleet:
        await fleet.declare_pool(pool)
        lost = await fleet.submit("a prompt", pool=pool)
        await foreign.channel.queue_purge(job_queue(pool))
        await start_worker(keep_requests=False, sweep_interval_s=SWEEP_S)
        running = await fleet.submit(slow_chat(tokens=10_000, step_s=0.1), pool=pool)
        await until_tokens(fleet, running)

        async def is_told() -> bool:
            return "(INFERFLEET_KEEP_REQUESTS): 1" in caplog.text

        await eventually(is_told)
        assert (await fleet.get(lost)).state is JobState.QUEUED
        assert await store.exists(*(request_key(job.id) for job in (lost, running))) == 0


async def test_a_job_whose_end_redis_has_forgotten_ends_again(
    fleet: Fleet,
    records: JobRecords,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await stall(records, foreign, job)
    await start_worker(sweep_interval_s=SWEEP_S)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    assert kinds_of(await journal_of(store, job)).count("finished") == 1


@pytest.mark.parametrize("is_closed", [True, False], ids=["it has left", "it is about to leave"])
async def test_a_job_whose_end_a_failover_forgot_but_not_that_it_left_the_index_ends_again(
    fleet: Fleet,
    services: Services,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_closed: bool,
) -> None:
    # About to leave, it does so before the first sweep.
    monkeypatch.setattr(open_jobs, "LEAVE_S", 0.0 if is_closed else 1.0)
    sweep_s = SWEEP_S if is_closed else 4.0
    async with Proxy(services.redis_url) as link:
        await start_worker(redis_url=link.url, sweep_interval_s=sweep_s, lease_s=1.0)
        job = await fleet.submit(slow_chat(tokens=100, step_s=0.05), pool=pool)
        await until_tokens(fleet, job)
        keys = (job_key(job.id), journal_key(job.id), request_key(job.id))
        before: dict[str, Any] = {key: await store.dump(key) for key in keys}
        await fleet.wait(job, timeout_s=PATIENCE_S)

        async def has_left() -> bool:
            return await open_in(store, pool) == set()

        if is_closed:
            await eventually(has_left)
        for key, dump in before.items():
            await store.restore(key, 0, dump, replace=True)
        await store.delete(result_key(job.id))
        link.reset()
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    assert was_republished(await journal_of(store, job))


async def test_a_submission_that_redis_has_recorded_before_it_went_away_is_in_doubt(
    fleet: Fleet,
    services: Services,
    connect: Connect,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
) -> None:
    """It is in the index, so the sweep publishes it: nobody may be told that it was refused."""
    async with (
        Proxy(services.redis_url) as link,
        connect(redis_url=link.url, connect_timeout_s=1) as cut_off,
    ):
        link.hold_answers_to(b"in doubt")
        with pytest.raises(PublishUnconfirmedError, match="Redis went away") as unconfirmed:
            await cut_off.submit(chat("in doubt"), pool=pool)
        await link.until_held(Direction.TO_CLIENT)
        assert unconfirmed.value.job_id in await open_in(store, pool)
        link.heal()
    await start_worker(sweep_interval_s=SWEEP_S)
    result = await fleet.wait(str(unconfirmed.value.job_id), timeout_s=PATIENCE_S)
    assert result.state is JobState.SUCCEEDED
