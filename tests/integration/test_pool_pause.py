"""A paused pool: what runs goes on, and nothing more starts until it is resumed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    RunCommand,
    StartWorker,
    chat,
    eventually,
    slow_chat,
    until_running,
)

from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.names import POOLS_KEY, pool_key
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import PoolSettings, read_pool_settings
from inferfleet.worker import pool_pause

SOON: dict[str, Any] = {"heartbeat_interval_s": 0.05}


async def until_waiting(foreign: ForeignClient, number: int) -> None:
    async def waits() -> bool:
        return await foreign.waiting() == number

    await eventually(waits)


async def states(fleet: Fleet, jobs: list[Job]) -> set[JobState]:
    return {record.state for record in (await fleet.get_many(jobs)).values() if record is not None}


async def test_what_runs_goes_on_and_what_waits_is_given_back(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    # Given back at once, and not when a lease has passed.
    await start_worker(max_running=2, look_ahead=4, lease_s=600, **SOON)
    running = [await fleet.submit(slow_chat(f"{n}", tokens=40, step_s=0.05), pool=pool) for n in range(2)]
    for job in running:
        await until_running(fleet, job)
    waiting = await fleet.submit_many(Job(pool=pool, body=chat(f"{n}")) for n in range(6))
    await until_waiting(foreign, 2)

    await fleet.pause_pool(pool)

    await until_waiting(foreign, 6)
    assert {it.state for it in await fleet.wait_many(running, timeout_s=PATIENCE_S)} == {JobState.SUCCEEDED}
    assert await states(fleet, waiting) == {JobState.QUEUED}
    assert await foreign.waiting() == 6

    await fleet.resume_pool(pool)
    await fleet.wait_many(waiting, timeout_s=PATIENCE_S)
    assert {record.attempt for record in (await fleet.get_many(waiting)).values() if record} == {1}


async def test_a_message_that_is_given_back_just_as_the_pool_goes_on_is_not_kept_for_a_lease(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker(max_running=1, look_ahead=2, lease_s=600)
    running = await fleet.submit(slow_chat(tokens=10_000, step_s=0.05), pool=pool)
    await until_running(fleet, running)
    waiting = await fleet.submit_many(Job(pool=pool, body=chat(f"{n}")) for n in range(2))
    slots = worker.worker._slots

    async def wait_for_slots() -> bool:
        return slots.waiting == 2

    await eventually(wait_for_slots)
    slots.pause(paused=True)
    slots.refuse_waiting()
    slots.pause(paused=False)
    await fleet.cancel(running)
    await fleet.wait_many(waiting, timeout_s=PATIENCE_S)


async def test_a_worker_that_starts_or_reconnects_takes_nothing_of_a_paused_pool(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, services: Services, pool: str
) -> None:
    jobs = await fleet.submit_many(Job(pool=pool, body=chat(f"{n}")) for n in range(3))
    await fleet.pause_pool(pool)
    async with Proxy(services.amqp_url) as link:
        worker = await start_worker(amqp_url=link.url, **SOON)

        async def ready() -> bool:
            return worker.worker.phase == "ready"

        await eventually(ready)
        connected = link.accepted
        broken = link.reset()

        async def reconnected() -> bool:
            return link.accepted >= connected + broken

        await eventually(reconnected)
        # A round trip of another worker in the same state shows that this one had the time to consume.
        other = await start_worker(worker_id=f"other-{pool}", **SOON)

        async def beats() -> bool:
            alive = {it.worker_id: it.phase for it in await fleet.workers()}
            return alive.get(f"other-{pool}") == "ready"

        await eventually(beats)
        assert await foreign.waiting() == 3
        assert await states(fleet, jobs) == {JobState.QUEUED}
        await other.stop()

        await fleet.resume_pool(pool)
        await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
        await worker.stop()


async def test_a_worker_takes_nothing_before_it_knows_whether_its_pool_is_paused(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_read = asyncio.Event()

    async def read_late(pipeline: CommandPipeline, name: str) -> PoolSettings:
        await may_read.wait()
        return await read_pool_settings(pipeline, name)

    monkeypatch.setattr(pool_pause, "read_pool_settings", read_late)
    job = await fleet.submit("hello", pool=pool)
    worker = await start_worker(**SOON)

    async def beats() -> bool:
        return [it.phase for it in await fleet.workers() if it.pool == pool] == ["ready"]

    await eventually(beats)
    assert await foreign.waiting() == 1
    may_read.set()
    await fleet.wait(job, timeout_s=PATIENCE_S)
    await worker.stop()


async def test_jobs_of_a_paused_pool_can_be_cancelled_and_its_workers_drained(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker(max_running=1, look_ahead=2, **SOON)
    running = await fleet.submit(slow_chat(tokens=1000, step_s=0.05), pool=pool)
    await until_running(fleet, running)
    waiting = await fleet.submit_many(Job(pool=pool, body=chat(f"{n}")) for n in range(2))
    await until_waiting(foreign, 0)

    await fleet.pause_pool(pool)
    await until_waiting(foreign, 2)
    assert await fleet.cancel(waiting[0]) is JobState.CANCELLED
    await worker.stop()

    await until_waiting(foreign, 3)
    assert await states(fleet, [running, waiting[1]]) == {JobState.QUEUED}


async def test_the_commands_pause_and_resume(
    inferfleet: RunCommand, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    ended = await inferfleet("pool", "pause", pool, "--json")
    assert (ended.code, json.loads(ended.out), ended.err) == (0, {"pool": pool, "state": "paused"}, "")
    assert (await fleet.pool(pool)).paused_at is not None
    ended = await inferfleet("pool", "resume", pool)
    assert (ended.code, ended.out, ended.err) == (0, "resumed\n", "")
    assert (await fleet.pool(pool)).paused_at is None
    ended = await inferfleet("pool", "resume", pool)
    assert (ended.code, ended.out, ended.err) == (0, "was not paused\n", "")
    for command in ("pause", "resume"):
        ended = await inferfleet("pool", command, "nobody-knows-it")
        assert (ended.code, ended.out) == (2, "")
        assert "there is no pool 'nobody-knows-it'" in ended.err
    # Nothing is left of it, for ever.
    assert not await store.exists(pool_key("nobody-knows-it"))


async def test_a_pool_that_is_only_declared_can_be_paused(
    inferfleet: RunCommand, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    await store.zrem(POOLS_KEY, pool)
    assert (await inferfleet("pool", "declare", pool)).code == 0
    ended = await inferfleet("pool", "pause", pool)
    assert (ended.code, ended.out, ended.err) == (0, "paused\n", "")
    assert pool in {it.pool for it in await fleet.pools()}
