"""An aborted rollout moves the jobs that wait in the canary pool back, each exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    RunCommand,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    record_of,
    unfinished,
)
from tests.integration.rollouts.conftest import SetWeight, some

from inferfleet.producer import Fleet, rollouts
from inferfleet.producer.rollout_moving import any_left, move_back, moving
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import RolloutError
from inferfleet.schemas.names import preferred_key
from inferfleet.schemas.rollout import Rollout, RolloutPhase
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.rabbitmq.queue_reader import QueueReader, ReadMessage
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.rollouts import change_rollout


async def test_those_that_were_submitted_to_the_pool_move_and_those_of_the_canary_itself_stay(
    fleet: Fleet,
    start_worker: StartWorker,
    producer_settings: Callable[..., ProducerSettings],
    store: aioredis.Redis,
    pool: str,
    canary: str,
    set_weight: SetWeight,
) -> None:
    await set_weight(100)
    jobs = await fleet.submit_many(some(pool, 30))
    own = await fleet.submit_many(some(canary, 3))
    assert (await fleet.pool(canary)).ready == 33
    await set_weight(0)

    async with moving(producer_settings()) as connection:
        move = partial(move_back, fleet, connection, producer_settings(), pool=pool, canary=canary)
        assert await move() == 30

        assert not await any_left(fleet, pool=pool, canary=canary)
        assert await move() == 0
    moved = await fleet.get_many(jobs)
    assert {(record_of(moved, job).pool, record_of(moved, job).submitted_to) for job in jobs} == {
        (pool, None)
    }
    assert set(await unfinished(store, pool)) == {job.id for job in jobs}
    await start_worker()
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert {(result.state, result.attempts) for result in results} == {(JobState.SUCCEEDED, 1)}

    async def own_are_left() -> bool:
        return (await fleet.pool(canary)).ready == len(own)

    await eventually(own_are_left)


async def test_a_preferred_job_counts_where_it_has_moved(
    connect: Connect,
    fleet: Fleet,
    producer_settings: Callable[..., ProducerSettings],
    store: aioredis.Redis,
    pool: str,
    canary: str,
    set_weight: SetWeight,
) -> None:
    await set_weight(100)
    async with connect(fair_shares=True) as fair:
        jobs = await fair.submit_many(some(pool, 3))
        assert {(job.pool, job.priority) for job in jobs} == {(canary, 5)}
        await set_weight(0)
        async with moving(producer_settings()) as connection:
            assert await move_back(fair, connection, producer_settings(), pool=pool, canary=canary) == 3

    places = [await store.zrange(preferred_key(each, "default"), 0, -1) for each in (canary, pool)]
    assert (places[0], set(places[1])) == ([], {job.id.encode() for job in jobs})


async def test_two_rollouts_that_start_at_the_same_moment_make_no_chain(
    fleet: Fleet, pool: str, canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither sees the other before it has started. One of them, or both, are aborted then."""
    both = asyncio.Barrier(2)

    async def change_together(pipeline: CommandPipeline, rollout: Rollout, *, revision: int) -> bool:
        if rollout.phase is RolloutPhase.RUNNING:
            await asyncio.wait_for(both.wait(), PATIENCE_S)
        return await change_rollout(pipeline, rollout, revision=revision)

    monkeypatch.setattr(rollouts, "change_rollout", change_together)
    starting = [
        Rollouts(fleet).start(one, to=other, steps=[100], interval_s=60, allow_no_workers=True)
        for one, other in ((pool, canary), (canary, pool))
    ]
    started = await asyncio.gather(*starting, return_exceptions=True)

    refused = [error for error in started if isinstance(error, RolloutError)]
    assert refused
    assert all("can take part in only one" in str(error) for error in refused)
    phases = [(await Rollouts(fleet).read(each)).rollout for each in (pool, canary)]
    assert [one.phase for one in phases if one is not None].count(RolloutPhase.RUNNING) == 2 - len(refused)


async def test_a_job_whose_mover_dies_before_the_ack_runs_once(
    fleet: Fleet,
    start_worker: StartWorker,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
    set_weight: SetWeight,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await set_weight(100)
    jobs = await fleet.submit_many(some(pool, 5))
    await set_weight(0)

    def die(_: QueueReader, message: ReadMessage) -> None:
        raise RuntimeError("killed")

    settings = producer_settings()
    with monkeypatch.context() as patched:
        patched.setattr(QueueReader, "ack", die)
        with pytest.raises(RuntimeError, match="killed"):
            async with moving(settings) as connection:
                await move_back(fleet, connection, settings, pool=pool, canary=canary)

    async def all_are_back() -> bool:
        return (await fleet.pool(canary)).ready == 5

    await eventually(all_are_back)
    async with moving(settings) as connection:
        assert await move_back(fleet, connection, settings, pool=pool, canary=canary) == 5
    await start_worker()
    await start_worker(pool=canary)
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert {(result.state, result.attempts) for result in results} == {(JobState.SUCCEEDED, 1)}
    assert {record.attempt for record in (await fleet.get_many(jobs)).values() if record} == {1}


async def test_the_turns_of_a_session_that_wait_for_the_canary_run_in_order_in_the_pool(
    fleet: Fleet,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    inferfleet: RunCommand,
    pool: str,
    canary: str,
) -> None:
    """A turn that waits in its lane has no message yet: it is moved once it has one."""
    start = ("rollout", "start", pool, "--to", canary, "--steps", "99.999,100")
    refused = await inferfleet(*start)
    assert refused.code == 2
    assert f"the canary pool '{canary}' has no ready worker" in refused.err
    started = await inferfleet(*start, "--allow-no-workers")
    assert started.code == 0, started.err
    turns = [await fleet.submit(Job(pool=pool, body=chat(f"{n}"), session_id=f"s-{pool}")) for n in range(4)]
    assert {turn.pool for turn in turns} == {canary}

    aborted = await inferfleet("rollout", "abort", pool, "--reason", "it rhymes")
    assert aborted.code == 0, aborted.err
    await start_gateway()
    await start_worker()

    await fleet.wait_many(turns, timeout_s=PATIENCE_S)
    said = await fleet.session(f"s-{pool}").turns()
    assert [turn.job_id for turn in said] == [turn.id for turn in turns]

    async def over() -> bool:
        rollout = (await Rollouts(fleet).read(pool)).rollout
        return rollout is not None and rollout.phase is RolloutPhase.ABORTED

    await eventually(over)
    shown = await inferfleet("rollout", "status", pool)
    assert "aborted, 0 % of the jobs" in shown.out
    assert "reason: it rhymes" in shown.out
