"""The controller goes on from step to step with a healthy canary, and aborts one that does worse."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    INSTANT,
    PATIENCE_S,
    Connect,
    StartGateway,
    StartWorker,
    aiormq_channel,
    chat,
    eventually,
    slow_chat,
    until_running,
)
from tests.integration.rollouts.conftest import until_followed, until_ready

from inferfleet.exporter.queues import QueueCounts
from inferfleet.exporter.sampler import Sampler
from inferfleet.local.services import Services
from inferfleet.producer import Fleet, rollout_control, rollout_moving
from inferfleet.producer.background import background
from inferfleet.producer.rollout_control import RolloutController
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas import FailureCode, Job, JobState
from inferfleet.schemas.names import POOLS_KEY, dead_queue, ended_key, job_queue, pool_key, rollout_key
from inferfleet.schemas.rollout import Rollout, RolloutPhase, RolloutRule
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.redis.ended_counts import read_counts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.rollouts import ask_rule, change_rollout, read_rollout, rule_of
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import EngineDeadError, Generation, GenerationError

SOON: dict[str, Any] = {"heartbeat_interval_s": 0.1}
TOLERANT: dict[str, Any] = {"max_ttft_ratio": 20, "max_wait_ratio": 20}
"""Both pools share a busy machine, where one of them may be slower for a while."""
MOST_CANARY_JOBS = 2500
"""More than the 95th percentile of the samples until a rate of 3 % is found, times what ends meanwhile."""


class Faulty(SimulatedEngine):
    """Fails a share of its attempts, or starts late."""

    def __init__(self, *, errors: float = 0.0, late_s: float = 0.0) -> None:
        super().__init__(model="simulated", max_running=64, engine_args=INSTANT)
        self._errors = errors
        self._late_s = late_s
        self._draw = random.Random(2)

    async def generate(self, generation: Generation) -> AsyncGenerator[Any]:
        await asyncio.sleep(self._late_s)
        if self._draw.random() < self._errors:
            raise GenerationError(FailureCode.OUT_OF_MEMORY, "injected")
        async for part in super().generate(generation):
            yield part


class NoQueues:
    """Knows no queue: the test is about what Redis has."""

    async def counts(self, pools: Collection[str]) -> dict[str, QueueCounts]:
        return {}

    async def aclose(self) -> None:
        pass


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_control, "LOOK_S", 0.1)
    monkeypatch.setattr(rollout_control, "LEASE_S", 1.0)
    monkeypatch.setattr(rollout_control, "SETTLE_S", 0.5)


@asynccontextmanager
async def controlled(fleet: Fleet, settings: ProducerSettings) -> AsyncGenerator[None]:
    async with background(RolloutController(fleet, settings).run()):
        yield


@asynccontextmanager
async def traffic(fleet: Fleet, pool: str) -> AsyncGenerator[list[Job]]:
    """Submit jobs, some of them turns of sessions, and wait for them, while the block runs."""
    jobs: list[Job] = []
    over = asyncio.Event()

    async def submit() -> None:
        while not over.is_set():
            turns = [Job(pool=pool, body=chat("turn"), session_id=f"{pool}-{n}") for n in range(10)]
            more = await fleet.submit_many([Job(pool=pool, body=chat()) for _ in range(90)] + turns)
            jobs.extend(more)
            await fleet.wait_many(more, timeout_s=PATIENCE_S)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(submit())
        yield jobs
        over.set()


async def assert_none_lost(fleet: Fleet, jobs: list[Job]) -> None:
    """Each job has succeeded, and each session has all its turns, in order."""
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    sessions: dict[str, list[str]] = {}
    for job in jobs:
        if job.session_id is not None:
            sessions.setdefault(job.session_id, []).append(job.id)
    for session, turns in sessions.items():
        assert [turn.job_id for turn in await fleet.session(session).turns()] == turns


async def until_phase(rollouts: Rollouts, pool: str, *phases: RolloutPhase) -> Rollout:
    found: list[Rollout] = []

    async def there() -> bool:
        rollout = (await rollouts.read(pool)).rollout
        assert rollout is not None
        found[:] = [rollout]
        return rollout.phase in phases

    await eventually(there)
    return found[0]


async def test_a_healthy_canary_gets_all_jobs_step_by_step(
    fleet: Fleet, start_worker: StartWorker, start_gateway: StartGateway, pool: str, canary: str
) -> None:
    await start_worker(Faulty(errors=0.001), **SOON)
    await start_worker(Faulty(errors=0.001), pool=canary, **SOON)
    await until_ready(fleet, pool, canary)
    rollouts = Rollouts(fleet)
    await rollouts.start(pool, to=canary, steps=[50, 100], interval_s=0.5, **TOLERANT)
    await start_gateway()
    async with traffic(fleet, pool) as jobs:
        rollout = await until_phase(
            rollouts, pool, RolloutPhase.PROMOTED, RolloutPhase.ABORTING, RolloutPhase.ABORTED
        )
    assert (rollout.phase, rollout.reason) == (RolloutPhase.PROMOTED, None)
    await assert_none_lost(fleet, jobs)
    assert (await fleet.submit(chat(), pool=pool)).pool == canary


@pytest.mark.parametrize(
    ("stable", "wrong", "limits", "reason"),
    [
        pytest.param(Faulty, lambda: Faulty(errors=0.03), TOLERANT, "attempts failed", id="errors"),
        pytest.param(
            lambda: Faulty(late_s=0.1),
            lambda: Faulty(late_s=0.4),
            {"max_wait_ratio": 20},
            "time to first token",
            id="first token",
        ),
    ],
)
async def test_a_canary_that_does_worse_is_aborted_and_no_job_is_lost(
    fleet: Fleet,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    pool: str,
    canary: str,
    pipeline: CommandPipeline,
    caplog: pytest.LogCaptureFixture,
    stable: Callable[[], Faulty],
    wrong: Callable[[], Faulty],
    limits: dict[str, Any],
    reason: str,
) -> None:
    await start_worker(stable(), **SOON)
    await start_worker(wrong(), pool=canary, **SOON)
    await until_ready(fleet, pool, canary)
    rollouts = Rollouts(fleet)
    # So long that the rollout cannot go on first.
    await rollouts.start(pool, to=canary, steps=[50, 100], interval_s=3600, **limits)
    await start_gateway()
    async with traffic(fleet, pool) as jobs:
        await until_phase(rollouts, pool, RolloutPhase.ABORTING, RolloutPhase.ABORTED)
    await assert_none_lost(fleet, jobs)
    rollout = await until_phase(rollouts, pool, RolloutPhase.ABORTED)
    assert reason in (rollout.reason or "")
    assert rollout.weight == 0
    assert sum(job.pool == canary for job in jobs) < MOST_CANARY_JOBS
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any("is aborted" in each and canary in each for each in told)
    sampler = Sampler(queues=NoQueues(), pipeline=pipeline, pools=(pool,))
    numbers = (await sampler.sample()).pools[pool]
    assert (numbers.rollout_weight, numbers.rollout_aborted) == (0, True)


async def test_another_controller_goes_on_when_the_first_has_died(
    connect: Connect,
    fleet: Fleet,
    start_worker: StartWorker,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
) -> None:
    await start_worker(Faulty(), **SOON)
    await start_worker(Faulty(), pool=canary, **SOON)
    await until_ready(fleet, pool, canary)
    rollouts = Rollouts(fleet)
    await rollouts.start(pool, to=canary, steps=[50, 100], interval_s=0.5, **TOLERANT)
    async with connect() as other:
        first, second = (
            asyncio.create_task(RolloutController(client, producer_settings()).run())
            for client in (other, fleet)
        )

        async def led() -> bool:
            return bool((await rollouts.read(pool)).controller)

        await eventually(led)
        # Without a word, whichever of them leads.
        first.cancel()
        async with traffic(fleet, pool) as jobs:
            await until_phase(rollouts, pool, RolloutPhase.PROMOTED)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
    await assert_none_lost(fleet, jobs)


async def test_of_two_controllers_that_decide_only_one_changes_the_rollout_and_its_rule(
    fleet: Fleet, pipeline: CommandPipeline, pool: str, canary: str
) -> None:
    await Rollouts(fleet).start(pool, to=canary, steps=[5, 100], interval_s=3600, allow_no_workers=True)
    kept = await read_rollout(pipeline, pool)
    assert kept.rollout is not None
    goes_on = kept.rollout.model_copy(update={"step": 1})
    aborts = kept.rollout.model_copy(update={"phase": RolloutPhase.ABORTING})

    written = [
        await change_rollout(pipeline, each, revision=kept.revision) for each in (aborts, goes_on, aborts)
    ]

    assert written == [True, False, True], "the third is the first, sent again"
    after = await read_rollout(pipeline, pool)
    assert (after.revision, after.rollout) == (kept.revision + 1, aborts)
    rule = rule_of(await ask_rule(pipeline, pool))
    assert rule is not None
    assert rule.weight == 0


async def test_a_rollout_that_cannot_be_changed_holds_up_no_other(
    fleet: Fleet,
    services: Services,
    store: aioredis.Redis,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
) -> None:
    rollouts = Rollouts(fleet)
    other, others_canary = f"{pool}-z", f"{pool}-z-v2"
    for name in (other, others_canary):
        await fleet.declare_pool(name)
    try:
        for name, to in ((pool, canary), (other, others_canary)):
            await rollouts.start(name, to=to, steps=[5, 100], interval_s=3600, allow_no_workers=True)
            await rollouts.abort(name, reason="by hand")
        async with aiormq_channel(services.amqp_url) as channel:
            await channel.queue_delete(job_queue(canary))

        async with controlled(fleet, producer_settings()):
            await until_phase(rollouts, other, RolloutPhase.ABORTED)
            assert (await until_phase(rollouts, pool, RolloutPhase.ABORTING)).pool == pool
            await fleet.declare_pool(canary)
            await until_phase(rollouts, pool, RolloutPhase.ABORTED)
    finally:
        await store.delete(pool_key(other), rollout_key(other))
        async with aiormq_channel(services.amqp_url) as channel:
            for name in (other, others_canary):
                await channel.queue_delete(job_queue(name))
                await channel.queue_delete(dead_queue(name))


async def test_a_job_of_a_client_that_has_not_seen_the_abort_yet_moves_back_too(
    connect: Connect,
    fleet: Fleet,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout_control, "SETTLE_S", PATIENCE_S)
    rollouts = Rollouts(fleet)
    await rollouts.start(pool, to=canary, steps=[99.999, 100], interval_s=3600, allow_no_workers=True)
    async with connect() as other:
        await until_followed(other, pool, RolloutRule(to=canary, weight=99.999))
        await rollouts.abort(pool, reason="by hand")
        async with controlled(fleet, producer_settings()):
            # In which the controller finds that the canary pool has none of the pool's jobs.
            await asyncio.sleep(0.5)
            monkeypatch.setattr("inferfleet.producer.routing.FRESH_S", PATIENCE_S)
            job = await other.submit(chat(), pool=pool)
            assert job.pool == canary

            async def is_back() -> bool:
                return (await fleet.get(job)).pool == pool and (await fleet.pool(pool)).ready == 1

            await eventually(is_back)


async def test_jobs_are_moved_back_on_one_connection_although_others_of_the_canary_stay_there(
    fleet: Fleet,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout_control, "LOOK_S", 0.01)
    opened: list[str] = []

    def noting(url: str, *, timeout_s: float, name: str) -> Any:
        opened.append(name)
        return open_amqp(url, timeout_s=timeout_s, name=name)

    monkeypatch.setattr(rollout_moving, "open_amqp", noting)
    rollouts = Rollouts(fleet)
    await fleet.submit_many([Job(pool=canary, body=chat())] * 3)
    await rollouts.start(pool, to=canary, steps=[50, 100], interval_s=3600, allow_no_workers=True)
    await until_followed(fleet, pool, RolloutRule(to=canary, weight=50))
    jobs = await fleet.submit_many([Job(pool=pool, body=chat()) for _ in range(20)])
    await rollouts.abort(pool, reason="by hand")
    async with controlled(fleet, producer_settings()):
        await until_phase(rollouts, pool, RolloutPhase.ABORTED)
    assert len(opened) == 1
    ready = [(await fleet.pool(each)).ready for each in (pool, canary)]
    assert ready == [len(jobs), 3]


async def test_the_pool_of_a_rollout_stays_on_the_list_by_which_gateways_find_it(
    fleet: Fleet,
    store: aioredis.Redis,
    pipeline: CommandPipeline,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
) -> None:
    """After it was promoted, the pool may have neither workers nor jobs that are recorded there."""
    await store.zrem(POOLS_KEY, pool)
    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    await Rollouts(fleet).promote(pool, allow_no_workers=True)
    long_ago = int(pipeline.clock.now().timestamp()) - 24 * 3600
    await store.zadd(POOLS_KEY, {pool: long_ago}, xx=True)

    async def was_noted() -> bool:
        return (await store.zscore(POOLS_KEY, pool) or 0) > long_ago

    async with controlled(fleet, producer_settings()):
        await eventually(was_noted)


async def test_attempts_during_which_the_engine_dies_count_as_failed(
    fleet: Fleet, start_worker: StartWorker, pipeline: CommandPipeline, canary: str
) -> None:
    """A new version that crashes must not look like one that has ended nothing."""
    worker = await start_worker(pool=canary)
    running = [await fleet.submit(slow_chat(tokens=1000, step_s=0.02), pool=canary) for _ in range(2)]
    for job in running:
        await until_running(fleet, job)
    await fleet.submit(slow_chat(tokens=1, step_s=0, kill_engine=True), pool=canary)
    with pytest.raises(EngineDeadError):
        await worker.running
    counts = await read_counts(pipeline, canary)
    assert counts.succeeded == 0
    assert counts.failed


async def test_counts_that_only_a_newer_worker_knows_do_not_stop_the_controller(
    pipeline: CommandPipeline, store: aioredis.Redis, canary: str
) -> None:
    await store.hset(ended_key(canary), mapping={"failed": 2, "wait:3": 4, "thinking": 5, "thinking:6": 7})
    counts = await read_counts(pipeline, canary)
    assert (counts.failed, counts.wait) == (2, {3: 4})
