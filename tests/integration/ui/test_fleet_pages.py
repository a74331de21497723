"""Pages of the whole fleet: pools, workers, the last hour; pausing and draining."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    slow_chat,
    until_running,
)
from tests.integration.ui.conftest import HOSTILE, Reader, assert_escaped

from inferfleet.gateway.ui import fleet_view
from inferfleet.producer import Fleet
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas.fleet_history import FleetSample
from inferfleet.schemas.names import FLEET_HISTORY_KEY, FLEET_RECORDER_KEY
from inferfleet.wire.redis import fleet_history
from inferfleet.wire.redis.fleet_history import FleetHistory
from inferfleet.wire.redis.pipeline import CommandPipeline

SEEN_S = 0.05

UNLIKE = "0123456789abcdef"
"""The identity of no model."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_view, "FRESH_S", 0.0)


def shown(reader: Reader, *wanted: str) -> Callable[[], Awaitable[bool]]:
    async def seen() -> bool:
        page = await reader.page("/ui/fleet")
        return all(each in page for each in wanted)

    return seen


async def test_the_fleet_shows_pools_their_gates_and_their_workers(
    fleet: Fleet, reader: Reader, start_worker: StartWorker, pool: str
) -> None:
    assert (await reader.get("/ui/")).headers["location"] == "/ui/fleet"
    await fleet.submit_many([chat()] * 3, pool=pool, priority=7)
    row = (await reader.page("/ui/fleet")).partition(f">{pool}</a>")[2].partition("</tr>")[0]
    assert "no worker" in row
    assert "7: 3</span>" in row

    await start_worker(worker_id=f"{pool}-worker")
    await eventually(shown(reader, f"/ui/fleet/workers/{pool}-worker/drain", "succeeded"))


async def test_the_fleet_shows_models_and_swaps_that_were_rolled_back(
    fleet: Fleet, reader: Reader, start_worker: StartWorker, inferfleet: RunCommand, pool: str
) -> None:
    # The first command may take longer than a heartbeat lives.
    await inferfleet("--version")
    await start_worker(worker_id=f"{pool}-worker", heartbeat_interval_s=0.1)

    async def ready() -> bool:
        (status,) = (await fleet.pool(pool)).workers or (None,)
        return status is not None and bool(status.model_identity)

    await eventually(ready)
    await fleet.require_identity(pool, UNLIKE)
    wanted = (f'requires model <span class="id">{UNLIKE}</span>', f"requires model {UNLIKE}, but this worker")
    await eventually(shown(reader, *wanted))
    await fleet.require_identity(pool, None)
    (worker,) = (await fleet.pool(pool)).workers
    await eventually(shown(reader, f'<span class="id">{worker.model_identity}</span>'))
    args = '{"weights": -1, "speed": 0}'
    options = ("--pool", pool, "--model", "simulated", "--engine-args", args)
    assert (await inferfleet("model", "swap", *options)).code == 1
    await eventually(
        shown(reader, '<span class="badge rolled_back">swap rolled back</span>', "it answers every")
    )


async def test_the_fleet_shows_rollouts_until_they_are_finished(
    fleet: Fleet, reader: Reader, pool: str
) -> None:
    canary, rollouts = f"{pool}-v2", Rollouts(fleet)
    await fleet.declare_pool(canary)
    await rollouts.start(pool, to=canary, steps=(5, 100), interval_s=600, allow_no_workers=True)

    async def row() -> str:
        table = (await reader.page("/ui/fleet")).partition('aria-label="Table of rollouts"')[2]
        return table.partition(f">{pool}</a></td>")[2].partition("</tr>")[0]

    assert [f">{canary}</td>" in await row(), "running" in await row(), ">5 %<" in await row()] == [True] * 3
    assert [">1 of 2<" in await row(), ">– / –<" in await row()] == [True] * 2
    await rollouts.abort(pool, reason=HOSTILE)
    assert_escaped(await row())

    async def aborted() -> bool:
        return '<span class="badge aborted">' in await row()

    await eventually(aborted)
    await rollouts.start(pool, to=canary, steps=(5, 100), interval_s=600, allow_no_workers=True)
    await rollouts.promote(pool, allow_no_workers=True)
    assert ["promoted" in await row(), ">100 %<" in await row()] == [True] * 2
    await rollouts.finish(pool)
    assert await row() == ""


async def test_a_pool_is_paused_and_resumed_after_a_question(fleet: Fleet, reader: Reader, pool: str) -> None:
    path = f"/ui/fleet/pools/{pool}"
    assert "Pause the pool" in await reader.page(f"{path}/pause")
    assert (await fleet.pool(pool)).paused_at is None
    answer = await reader.submit(f"{path}/pause")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/fleet")
    assert (await fleet.pool(pool)).paused_at is not None
    assert f"{path}/resume" in await reader.page("/ui/fleet")
    await reader.submit(f"{path}/resume")
    assert (await fleet.pool(pool)).paused_at is None
    for action in ("pause", "resume"):
        await reader.page(f"{path}-unknown/{action}", 404)
        assert (await reader.submit(f"{path}-unknown/{action}")).status_code == 404


async def test_a_worker_is_drained_after_a_question(
    fleet: Fleet, reader: Reader, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker(worker_id=f"{pool}-worker", drain_timeout_s=PATIENCE_S)
    job = await fleet.submit(slow_chat(tokens=30, step_s=0.05), pool=pool)
    await until_running(fleet, job)
    path = f"/ui/fleet/workers/{pool}-worker/drain"
    assert "Drain the worker" in await reader.page(path)
    answer = await reader.submit(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/fleet")
    await asyncio.wait_for(asyncio.shield(worker.running), PATIENCE_S)
    assert (await fleet.wait(job)).state == "succeeded"
    await reader.page(path, 404)
    assert (await reader.submit(path)).status_code == 404


async def test_one_gateway_at_a_time_records_the_last_hour(
    start_gateway: StartGateway,
    fleet: Fleet,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_view, "SAMPLE_S", SEEN_S)
    await fleet.submit_many([chat()] * 3, pool=pool)
    await store.delete(FLEET_RECORDER_KEY, FLEET_HISTORY_KEY)
    first, second = await start_gateway(), await start_gateway()

    async def recorded(more: int = 3) -> bool:
        return await store.llen(FLEET_HISTORY_KEY) >= more

    await eventually(recorded)
    holder = await store.get(FLEET_RECORDER_KEY)
    count = await store.llen(FLEET_HISTORY_KEY)
    await eventually(lambda: recorded(count + 3))
    assert await store.get(FLEET_RECORDER_KEY) == holder
    assert 0 < await store.ttl(FLEET_HISTORY_KEY) <= fleet_history.TTL_S
    newest = (await FleetHistory(fleet.pipeline, recorder="nobody").read())[-1]
    assert newest.unfinished >= 3

    for gateway in (first, second):
        async with Reader(gateway) as reader:
            page = await reader.page("/ui/fleet")
            assert "Unfinished jobs in the last hour" in page
            assert "<polyline" in page


async def test_another_gateway_goes_on_when_the_recorder_is_gone(
    pipeline: CommandPipeline, store: aioredis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.delete(FLEET_RECORDER_KEY, FLEET_HISTORY_KEY)
    monkeypatch.setattr(fleet_history, "LEASE_S", 0.2)
    monkeypatch.setattr(fleet_history, "KEPT", 5)
    one, other = (FleetHistory(pipeline, recorder=name) for name in ("one", "other"))
    assert await one.is_recorder()
    assert not await other.is_recorder()
    samples = [sample(pipeline, number) for number in range(8)]
    assert not await other.record(samples[0])
    assert await other.read() == []

    await eventually(other.is_recorder)
    monkeypatch.setattr(fleet_history, "LEASE_S", 60)
    for each in samples:
        assert await other.record(each)
        # A command whose answer was lost is sent again.
        assert await other.record(each)
    await store.lset(FLEET_HISTORY_KEY, 0, "of another version")
    assert await one.read() == samples[-4:]
    assert not await one.is_recorder()


def sample(pipeline: CommandPipeline, number: int) -> FleetSample:
    return FleetSample(at=pipeline.clock.now(), unfinished=number, running=0, tokens_per_s=0.0)
