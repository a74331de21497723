"""A session's next turn goes to the worker that has its history in its cache, if that has room in time."""

from __future__ import annotations

import signal
from contextlib import suppress
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
    assert_whole,
    chat,
    eventually,
    journal_of,
    until_running,
)
from tests.integration.sessions.conftest import SLOW, conversation, finished
from tests.integration.test_lost_messages import was_republished
from tests.integration.test_preemption import endless_chat

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas import Job, JobState, Priority
from inferfleet.schemas.errors import QueueFullError
from inferfleet.schemas.names import job_queue, session_key, warm_queue, warm_turns
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.confirms import NackedError
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel, Outgoing
from inferfleet.wire.rabbitmq.topology import declare_warm_queue
from inferfleet.wire.redis.session_lanes import Payload
from inferfleet.worker.broker import Subscription
from inferfleet.worker.lanes import LaneAdvance

pytestmark = pytest.mark.matrix

LONG_S = 3600.0
"""Longer than any test: who comes elsewhere has not waited for that."""

ENDLESS = {"simulated": {"tokens": 100_000, "step_delay_s": 0.02}}


async def worker_of(fleet: Fleet, job: Job) -> str | None:
    return (await fleet.get(job)).worker_id


async def run(fleet: Fleet, session: Session, text: str, **options: Any) -> str | None:
    """Run a turn, and return the worker that ran it."""
    job = await session.send(text, **options)
    (result,) = await finished(fleet, job)
    assert result.state is JobState.SUCCEEDED
    return result.worker_id


async def until_waiting(foreign: ForeignClient, queue: str, count: int) -> None:
    async def are_there() -> bool:
        return await foreign.waiting(queue) == count

    await eventually(are_there)


async def until_ready(fleet: Fleet, *worker_ids: str) -> None:
    async def are_ready() -> bool:
        return {it.worker_id for it in await fleet.workers() if it.phase == "ready"} >= {*worker_ids}

    await eventually(are_ready)


async def until_full(fleet: Fleet, pool: str) -> list[Job]:
    """Submit jobs until the pool's queue is full. A quorum queue holds one more than it should."""
    jobs: list[Job] = []
    with suppress(QueueFullError):
        while True:
            jobs.append(await fleet.submit(chat("other"), pool=pool))
    return jobs


@pytest.mark.parametrize("wait_s", [LONG_S, 0.0])
async def test_all_turns_of_a_session_run_on_the_worker_that_ran_the_first(
    fleet: Fleet, start_worker: StartWorker, pool: str, wait_s: float
) -> None:
    """Without the setting they run anywhere: RabbitMQ delivers round-robin."""
    for name in "abcd":
        await start_worker(worker_id=f"{pool}-{name}", warm_wait_s=wait_s)
    await until_ready(fleet, *(f"{pool}-{name}" for name in "abcd"))
    sessions = [fleet.session(f"s-{uuid4()}") for _ in range(6)]
    texts = [f"turn {number}" for number in range(5)]
    stayed = 0
    for session in sessions:
        # Half of them come to the front when the one before ends, the others when they are submitted.
        jobs = [await session.send(text, pool=pool) for text in texts[:3]]
        await finished(fleet, *jobs)
        for text in texts[3:]:
            jobs.append(await session.send(text, pool=pool))
            await finished(fleet, jobs[-1])
        assert await session.history() == conversation(*texts)
        stayed += len({await worker_of(fleet, job) for job in jobs}) == 1
    assert stayed == (len(sessions) if wait_s else 0)


async def test_a_worker_that_drains_gets_no_new_turns(
    fleet: Fleet, session: Session, start_worker: StartWorker, foreign: ForeignClient, pool: str
) -> None:
    first = await start_worker(worker_id=f"{pool}-first", warm_wait_s=LONG_S)
    assert await run(fleet, session, "one", pool=pool) == f"{pool}-first"
    await start_worker(worker_id=f"{pool}-second", warm_wait_s=LONG_S)
    await first.stop()
    # Its session would wait for an hour there.
    assert await run(fleet, session, "two", pool=pool) == f"{pool}-second"
    assert await run(fleet, session, "three", pool=pool) == f"{pool}-second"
    assert await foreign.waiting(warm_queue(pool, f"{pool}-first")) == 0


async def test_a_turn_that_a_draining_worker_hands_over_runs_elsewhere_at_once(
    fleet: Fleet, session: Session, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    first = await start_worker(worker_id=f"{pool}-first", warm_wait_s=LONG_S)
    await run(fleet, session, "one", pool=pool)
    job = await session.send("two", pool=pool, body=SLOW)
    await until_running(fleet, job)
    await start_worker(worker_id=f"{pool}-second", warm_wait_s=LONG_S)
    await first.stop()
    (result,) = await finished(fleet, job)
    assert (result.state, result.worker_id) == (JobState.SUCCEEDED, f"{pool}-second")
    assert_whole(await journal_of(store, job))
    past = conversation("one")
    assert await session.history() == conversation("two", after=past, **SLOW)


async def test_when_the_worker_has_been_killed_the_next_turn_waits_no_longer_than_it_may(
    fleet: Fleet,
    session: Session,
    start_worker_process: StartWorkerProcess,
    start_worker: StartWorker,
    store: aioredis.Redis,
    foreign: ForeignClient,
    pool: str,
) -> None:
    """The worker's queue outlives it for a minute."""
    killed = await start_worker_process("--worker-id", f"{pool}-killed", warm_wait_s="2")
    assert await run(fleet, session, "one", pool=pool) == f"{pool}-killed"
    killed.signal(signal.SIGKILL)
    await killed.ended()
    await start_worker(worker_id=f"{pool}-other", warm_wait_s=2)
    job = await session.send("two", pool=pool)
    assert await foreign.waiting(warm_queue(pool, f"{pool}-killed")) == 1
    (result,) = await finished(fleet, job)
    assert result.worker_id == f"{pool}-other"
    assert await run(fleet, session, "three", pool=pool) == f"{pool}-other"
    assert await session.history() == conversation("one", "two", "three")
    assert not was_republished(await journal_of(store, job))


async def test_a_turn_that_a_killed_worker_ran_goes_on_elsewhere(
    fleet: Fleet,
    session: Session,
    start_worker_process: StartWorkerProcess,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
) -> None:
    killed = await start_worker_process("--worker-id", f"{pool}-killed", warm_wait_s="0.5", lease_s="1")
    await run(fleet, session, "one", pool=pool)
    job = await session.send("two", pool=pool, body=SLOW)
    await until_running(fleet, job)
    killed.signal(signal.SIGKILL)
    await killed.ended()
    await start_worker(worker_id=f"{pool}-other", warm_wait_s=0.5, lease_s=1)
    (result,) = await finished(fleet, job)
    assert (result.state, result.worker_id) == (JobState.SUCCEEDED, f"{pool}-other")
    assert_whole(await journal_of(store, job))


async def test_a_full_worker_leaves_the_turn_to_another(
    fleet: Fleet, session: Session, start_worker: StartWorker, foreign: ForeignClient, pool: str
) -> None:
    settings: dict[str, Any] = {"warm_wait_s": 1.0, "max_running": 1, "look_ahead": 0}
    await start_worker(worker_id=f"{pool}-full", **settings)
    await run(fleet, session, "one", pool=pool)
    long = await fleet.submit(endless_chat("long"), pool=pool)
    await until_running(fleet, long)
    await start_worker(worker_id=f"{pool}-other", **settings)
    assert await run(fleet, session, "two", pool=pool) == f"{pool}-other"
    assert (await fleet.get(long)).state is JobState.RUNNING
    await fleet.cancel(long)


async def test_a_turn_that_nobody_has_room_for_waits_for_its_worker_if_the_queue_is_full(
    connect: Connect,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RabbitMQ would drop it: it moves messages without a confirm."""
    refused = 0
    pass_on = LaneAdvance.pass_on

    async def count_refusals(self: LaneAdvance, payload: Payload) -> None:
        nonlocal refused
        try:
            await pass_on(self, payload)
        except NackedError:
            refused += 1
            raise

    monkeypatch.setattr(LaneAdvance, "pass_on", count_refusals)
    async with connect(queue_max_length=1) as fleet:
        await fleet.declare_pool(pool)
        await start_worker(worker_id=pool, warm_wait_s=0.1, max_running=1, look_ahead=0, queue_max_length=1)
        session = fleet.session(f"s-{uuid4()}")
        await run(fleet, session, "one", pool=pool)
        long = await fleet.submit(endless_chat("long"), pool=pool)
        await until_running(fleet, long)
        others = await until_full(fleet, pool)
        turn = await session.send("two", pool=pool)

        async def was_refused() -> bool:
            return refused >= 2

        await eventually(was_refused)
        await fleet.cancel(long)
        results = await finished(fleet, turn, *others)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    assert not was_republished(await journal_of(store, turn))


async def test_an_urgent_turn_does_not_wait_for_its_worker(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    settings: dict[str, Any] = {"warm_wait_s": LONG_S, "max_running": 1, "look_ahead": 0, "preempt_limit": 0}
    await start_worker(worker_id=f"{pool}-full", **settings)
    await run(fleet, session, "one", pool=pool)
    long = await fleet.submit(endless_chat("long"), pool=pool)
    await until_running(fleet, long)
    await start_worker(worker_id=f"{pool}-other", **settings)
    assert await run(fleet, session, "two", pool=pool, priority=Priority.URGENT) == f"{pool}-other"
    await fleet.cancel(long)


async def test_a_more_urgent_job_of_the_pools_queue_comes_before_a_turn_that_waits_in_its_worker(
    fleet: Fleet, session: Session, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(worker_id=pool, warm_wait_s=LONG_S, max_running=1, look_ahead=2)
    await run(fleet, session, "one", pool=pool)
    long = await fleet.submit(endless_chat("long"), pool=pool)
    await until_running(fleet, long)
    turn = await session.send("two", pool=pool, priority=3)
    more_urgent = [await fleet.submit(chat(f"more urgent {i}"), pool=pool, priority=5) for i in range(10)]

    async def are_held() -> bool:
        return any(it.worker_id == pool and it.held >= 3 for it in await fleet.workers())

    await eventually(are_held)
    await fleet.cancel(long)
    ends = [result.job_id async for result in fleet.as_completed([turn, *more_urgent], timeout_s=PATIENCE_S)]
    assert ends[-1] == turn.id


async def test_a_worker_whose_slots_run_turns_takes_no_other_jobs(
    fleet: Fleet,
    start_worker: StartWorker,
    foreign: ForeignClient,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int] = []
    prefetch = Subscription.prefetch

    async def note_limit(self: Subscription, limit: int, *, warm: int = 0) -> None:
        await prefetch(self, limit, warm=warm)
        limits.append(limit)

    monkeypatch.setattr(Subscription, "prefetch", note_limit)
    slots, jobs = 4, 10
    await start_worker(worker_id=pool, warm_wait_s=LONG_S, max_running=slots, look_ahead=0)
    sessions = [fleet.session(f"s-{uuid4()}") for _ in range(slots)]
    for session in sessions:
        await run(fleet, session, "one", pool=pool)
    turns = [await session.send("two", pool=pool, body=ENDLESS) for session in sessions]
    for turn in turns:
        await until_running(fleet, turn)

    async def has_noticed() -> bool:
        return limits[-1] == 0

    await eventually(has_noticed)
    waiting = await fleet.submit_many([chat(f"job {i}") for i in range(jobs)], pool=pool)
    await until_waiting(foreign, job_queue(pool), jobs)
    for turn in turns:
        await fleet.cancel(turn)
    await finished(fleet, *waiting)

    async def has_room_again() -> bool:
        return limits[-1] == slots

    await eventually(has_room_again)


async def test_a_paused_pool_has_all_its_turns_in_its_queue(
    fleet: Fleet, session: Session, start_worker: StartWorker, foreign: ForeignClient, pool: str
) -> None:
    await start_worker(
        worker_id=pool, warm_wait_s=LONG_S, max_running=1, look_ahead=1, heartbeat_interval_s=0.05
    )
    await run(fleet, session, "one", pool=pool)
    long = await fleet.submit(endless_chat("long"), pool=pool)
    await until_running(fleet, long)
    turn = await session.send("two", pool=pool)

    async def is_held() -> bool:
        return any(it.worker_id == pool and it.held for it in await fleet.workers())

    await eventually(is_held)
    await fleet.pause_pool(pool)
    await until_waiting(foreign, job_queue(pool), 1)
    await fleet.cancel(long)
    await fleet.resume_pool(pool)
    (result,) = await finished(fleet, turn)
    assert result.state is JobState.SUCCEEDED


async def test_a_turn_in_its_workers_queue_is_not_lost_and_one_that_is_lost_there_is_published_again(
    fleet: Fleet,
    session: Session,
    start_worker: StartWorker,
    services: Services,
    foreign: ForeignClient,
    store: aioredis.Redis,
    pool: str,
) -> None:
    sweeps: dict[str, Any] = {"sweep_interval_s": 0.4, "warm_wait_s": 4.0}
    await start_worker(worker_id=pool, **sweeps)
    await run(fleet, session, "one", pool=pool)
    # A queue like that of a worker that was killed a moment ago.
    gone = f"{pool}-gone"
    settings = WorkerSettings(amqp_url=services.amqp_url, pool=pool, worker_id=gone, warm_wait_s=4.0)
    async with open_amqp(services.amqp_url, timeout_s=PATIENCE_S, name="gone") as connection:
        await declare_warm_queue(await connection.channel(), settings)

    await store.hset(session_key(session.id), "warm", warm_turns(pool, gone))
    moved = await session.send("two", pool=pool)
    assert await foreign.waiting(warm_queue(pool, gone)) == 1
    # Meanwhile other jobs come and go, and the queue is empty.
    while not (await fleet.get(moved)).state.terminal:
        await finished(fleet, *[await fleet.submit(chat("other"), pool=pool) for _ in range(5)])
    assert not was_republished(await journal_of(store, moved))

    await store.hset(session_key(session.id), "warm", warm_turns(pool, gone))
    lost = await session.send("three", pool=pool)
    await foreign.channel.queue_purge(warm_queue(pool, gone))
    (result,) = await finished(fleet, lost)
    assert result.state is JobState.SUCCEEDED
    assert was_republished(await journal_of(store, lost))
    assert await session.history() == conversation("one", "two", "three")


async def test_a_worker_may_start_again_with_more_slots(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    for slots in (2, 4):
        worker = await start_worker(worker_id=pool, warm_wait_s=LONG_S, max_running=slots)
        assert await run(fleet, session, f"with {slots}", pool=pool) == pool
        await worker.stop()


@pytest.mark.parametrize("keep", [True, False])
async def test_only_turns_that_can_be_published_again_wait_for_a_worker(
    connect: Connect, start_worker: StartWorker, pool: str, monkeypatch: pytest.MonkeyPatch, *, keep: bool
) -> None:
    """RabbitMQ may lose a message that it moves, and each client decides whether Redis keeps the request."""
    warm_keys: dict[str | int | None, str] = {}
    publish_job = ConfirmChannel.publish_job

    async def note_key(self: ConfirmChannel, message: Outgoing, *, pool: str, warm: str = "") -> bool:
        warm_keys[message.properties.message_id] = warm
        return await publish_job(self, message, pool=pool, warm=warm)

    monkeypatch.setattr(ConfirmChannel, "publish_job", note_key)
    async with connect(keep_requests=keep) as fleet:
        await fleet.declare_pool(pool)
        await start_worker(worker_id=pool, warm_wait_s=LONG_S)
        session = fleet.session(f"s-{uuid4()}")
        await run(fleet, session, "one", pool=pool)
        published = await session.send("two", pool=pool, body=SLOW)
        from_lane = await session.send("three", pool=pool)
        await finished(fleet, published, from_lane)
    key = warm_turns(pool, pool) if keep else ""
    assert [warm_keys[turn.id] for turn in (published, from_lane)] == [key, key]


async def test_a_session_that_changes_pools_does_not_wait_for_a_worker_of_the_old_one(
    fleet: Fleet, session: Session, start_worker: StartWorker, foreign: ForeignClient, pool: str
) -> None:
    other = f"{pool}-2"
    await start_worker(worker_id=f"{pool}-a", warm_wait_s=LONG_S)
    await start_worker(worker_id=f"{other}-b", warm_wait_s=LONG_S, pool=other)
    await until_ready(fleet, f"{other}-b")
    assert await run(fleet, session, "one", pool=pool) == f"{pool}-a"
    assert await run(fleet, session, "two", pool=other) == f"{other}-b"
    assert await run(fleet, session, "three", pool=pool) == f"{pool}-a"
    await foreign.channel.queue_delete(job_queue(other))
