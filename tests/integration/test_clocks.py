"""Machines whose clocks are hours off: what is compared, measured or shown is in Redis' time all the same."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

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
    slow_chat,
)

from inferfleet.producer import Fleet
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import job_key, session_key

SKEW = """
import datetime, time

_real, _time, _time_ns = datetime.datetime, time.time, time.time_ns
time.time = lambda: _time() + {hours} * 3600
time.time_ns = lambda: _time_ns() + {hours} * 3600 * 10**9


class _Kind(type):
    def __instancecheck__(cls, it):
        return isinstance(it, _real)


class datetime_(_real, metaclass=_Kind):
    @classmethod
    def now(cls, tz=None):
        return _real.fromtimestamp(time.time(), tz)


datetime.datetime = datetime_
assert abs(datetime.datetime.now().timestamp() - _time() - {hours} * 3600) < 60
"""
"""Python that puts the wall clock of its process off. The monotonic one goes on as it did."""

hours_off = pytest.mark.parametrize("hours", [3, -3], ids=["ahead", "behind"])

NEAR = timedelta(seconds=PATIENCE_S)


async def time_of(store: aioredis.Redis) -> datetime:
    seconds, microseconds = await store.time()
    return datetime.fromtimestamp(int(seconds) + int(microseconds) / 1e6, UTC)


def assert_in_order(moments: Sequence[datetime | None], *, now: datetime) -> None:
    """They are of the last minute, and each is not before the one before it."""
    for moment in moments:
        assert moment is not None
        assert abs(moment - now) < NEAR
    # Two processes know Redis' time to some milliseconds; a busy machine answers late.
    for earlier, later in pairwise(moments):
        assert earlier is not None
        assert later is not None
        assert later - earlier > timedelta(seconds=-1)


@hours_off
async def test_a_worker_whose_clock_is_off_hides_no_other_and_is_not_hidden(
    fleet: Fleet,
    start_worker: StartWorker,
    start_worker_process: StartWorkerProcess,
    store: aioredis.Redis,
    pool: str,
    hours: int,
) -> None:
    await start_worker(worker_id=f"{pool}-right", heartbeat_interval_s=60)
    await eventually(lambda: seen(fleet, pool, "right"))
    off = await start_worker_process(
        preamble=SKEW.format(hours=hours), worker_id=f"{pool}-off", heartbeat_interval_s="0.2"
    )
    await off.logged("ready")
    first = await heartbeat(fleet, pool, "off")
    beats = {first.seen_at}
    async with asyncio.timeout(PATIENCE_S):
        while len(beats) < 5:
            assert await seen(fleet, pool, "right")
            beats.add((await heartbeat(fleet, pool, "off")).seen_at)
    last = await heartbeat(fleet, pool, "off")
    assert_in_order([last.started_at, *sorted(beats)], now=await time_of(store))


async def seen(fleet: Fleet, pool: str, name: str) -> bool:
    return f"{pool}-{name}" in {it.worker_id for it in await fleet.workers()}


async def heartbeat(fleet: Fleet, pool: str, name: str) -> Heartbeat:
    """The entry of a worker on the health map; on a busy machine a short-lived one may just be away."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for it in await fleet.workers():
                if it.worker_id == f"{pool}-{name}":
                    return it
            await asyncio.sleep(0.01)


@hours_off
async def test_what_a_worker_measures_does_not_depend_on_its_clock(
    fleet: Fleet, start_worker_process: StartWorkerProcess, store: aioredis.Redis, pool: str, hours: int
) -> None:
    worker = await start_worker_process(preamble=SKEW.format(hours=hours))
    await worker.logged("ready")
    job = await fleet.submit(slow_chat(tokens=4, step_s=0.01), pool=pool, stream=True)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    record = await fleet.get(job)
    timings = result.timings
    assert timings is not None
    assert 0 < timings.generation_s <= timings.total_s < PATIENCE_S
    assert timings.queue_wait_s < PATIENCE_S
    now = await time_of(store)
    assert_in_order([record.submitted_at, record.started_at, record.finished_at], now=now)
    journal = await journal_of(store, job)
    assert [it.kind for it in journal][-1] == "finished"
    assert_in_order([it.at for it in journal], now=now)


@hours_off
async def test_what_a_client_submits_is_measured_whatever_its_clock_says(
    fleet: Fleet,
    environment: dict[str, str],
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    hours: int,
) -> None:
    program = f"{SKEW.format(hours=hours)}\nfrom inferfleet.cli import main\nmain()"
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", program, "submit", "hello", "--pool", pool, "--json"],
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0
    job_id: str = json.loads(printed)["id"]
    await start_worker()
    result = await fleet.wait(job_id, timeout_s=PATIENCE_S)
    assert result.timings is not None
    assert 0 < result.timings.total_s < PATIENCE_S
    record = await fleet.get(job_id)
    now = await time_of(store)
    assert_in_order([record.submitted_at, record.started_at, record.finished_at], now=now)
    assert_in_order([it.at for it in await journal_of(store, job_id)], now=now)


@hours_off
async def test_a_message_that_does_not_say_when_it_was_submitted_was_so_in_redis_time(
    foreign: ForeignClient,
    fleet: Fleet,
    start_worker_process: StartWorkerProcess,
    store: aioredis.Redis,
    pool: str,
    hours: int,
) -> None:
    worker = await start_worker_process(preamble=SKEW.format(hours=hours))
    await worker.logged("ready")
    job_id = new_job_id()
    await foreign.publish(
        json.dumps({"id": job_id, "pool": pool, "body": chat()}).encode(), message_id=job_id
    )

    async def exists() -> bool:
        return bool(await store.exists(job_key(job_id)))

    await eventually(exists)
    await fleet.wait(job_id, timeout_s=PATIENCE_S)
    record = await fleet.get(job_id)
    assert_in_order([record.submitted_at, record.started_at], now=await time_of(store))


@hours_off
async def test_a_job_expires_by_the_clock_of_redis(
    fleet: Fleet, start_worker_process: StartWorkerProcess, store: aioredis.Redis, pool: str, hours: int
) -> None:
    now = await time_of(store)
    over = await fleet.submit("hello", pool=pool, expires_at=now - timedelta(seconds=1))
    still = await fleet.submit("hello", pool=pool, expires_at=now + timedelta(minutes=10))
    await start_worker_process(preamble=SKEW.format(hours=hours))
    results = await fleet.wait_many([over, still], timeout_s=PATIENCE_S)
    assert [it.state for it in results] == ["expired", "succeeded"]


@hours_off
async def test_the_turns_of_a_session_are_timed_by_redis(
    connect: Connect,
    fleet: Fleet,
    start_worker_process: StartWorkerProcess,
    store: aioredis.Redis,
    pool: str,
    hours: int,
) -> None:
    session = fleet.session(f"{pool}-s")
    worker = await start_worker_process(preamble=SKEW.format(hours=hours))
    await worker.logged("ready")
    jobs = [await session.send(text, pool=pool) for text in ("one", "two")]
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert [it.text != "" for it in results] == [True, True]
    now = await time_of(store)
    record = await session.get()
    assert record is not None
    assert_in_order([record.created_at, record.updated_at], now=now)
    assert_in_order([turn.at for turn in await session.turns()], now=now)
    since = await store.hget(session_key(session.id), "owner_since")
    assert_in_order([datetime.fromtimestamp(int(since or 0) / 1000, UTC)], now=now)


async def test_two_clients_whose_clocks_differ_do_not_take_each_others_turns_for_dead(
    fleet: Fleet, environment: dict[str, str], store: aioredis.Redis, pool: str, start_worker: StartWorker
) -> None:
    """The turn of one that is about to be published is not published by the other, three hours ahead."""
    session = fleet.session(f"{pool}-s")
    first = await session.send("one", pool=pool)
    # As if its publisher had not come to publish it yet.
    await store.hset(session_key(session.id), "published", 0)
    program = f"""
{SKEW.format(hours=3)}
import asyncio
from inferfleet.producer import Fleet

async def main():
    async with Fleet.connect() as fleet:
        await fleet.session({session.id!r}).send("two", pool={pool!r}, on_busy="reject")

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", program],
        env=environment | {"INFERFLEET_TURN_PUBLISH_GRACE_S": "600"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert b"unfinished turn" in told
    # It would have noted that it had published the other's turn.
    assert await store.hget(session_key(session.id), "published") == b"0"
    await start_worker()
    assert (await fleet.wait(first, timeout_s=PATIENCE_S)).text == answer_to(first)
