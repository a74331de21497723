"""A canary pool that cannot serve the jobs of its pool: it has no worker, or lacks a model that jobs name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    INSTANT,
    PATIENCE_S,
    RunCommand,
    StartGateway,
    StartWorker,
    chat,
    eventually,
)
from tests.integration.rollouts.conftest import some, until_followed, until_ready

from inferfleet.producer import Fleet, rollout_control
from inferfleet.producer.background import background
from inferfleet.producer.rollout_control import RolloutController
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas import FailureCode, Job, JobState
from inferfleet.schemas.errors import RolloutError
from inferfleet.schemas.names import rollout_key
from inferfleet.schemas.rollout import Rollout, RolloutPhase, RolloutRule
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.clock import milliseconds
from inferfleet.wire.redis.ended_counts import read_counts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.rollouts import change_rollout, lead_rollout, read_rollout
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import Generation, ModelIdentity


class Adapted(SimulatedEngine):
    """Serves LoRA adapters, too."""

    def __init__(self, model: str, *adapters: str) -> None:
        super().__init__(model=model, max_running=8, engine_args=INSTANT)
        self._names = adapters

    async def adapters(self) -> tuple[str, ...]:
        return self._names

    async def identify(self, generation: Generation) -> ModelIdentity:
        return self.identity


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_control, "LOOK_S", 0.1)
    monkeypatch.setattr(rollout_control, "SETTLE_S", 0.5)


async def until_aborted(fleet: Fleet, pool: str) -> str:
    """Wait until the rollout of a pool is aborted. Return why it was."""

    async def over() -> bool:
        return (await rollout_of(fleet, pool)).phase is RolloutPhase.ABORTED

    await eventually(over)
    return (await rollout_of(fleet, pool)).reason or ""


async def rollout_of(fleet: Fleet, pool: str) -> Rollout:
    rollout = (await Rollouts(fleet).read(pool)).rollout
    assert rollout is not None
    return rollout


@pytest.mark.parametrize(
    ("own", "canarys", "missing"),
    [
        (("m1",), ("m2",), "'m1'"),
        (("m1", "french", "german"), ("m1", "german"), "'french'"),
    ],
    ids=["another name", "an adapter is missing"],
)
async def test_a_canary_that_lacks_a_served_name_is_refused_at_the_start_and_when_it_is_promoted(
    fleet: Fleet,
    start_worker: StartWorker,
    inferfleet: RunCommand,
    pool: str,
    canary: str,
    own: tuple[str, ...],
    canarys: tuple[str, ...],
    missing: str,
) -> None:
    rollouts = Rollouts(fleet)
    await start_worker(Adapted(*own))
    await until_ready(fleet, pool)
    with pytest.raises(RolloutError, match=r"interval_s: 1e.12 is above the maximum 3162240000"):
        await rollouts.start(pool, to=canary, steps=[100], interval_s=1e12)
    with pytest.raises(RolloutError, match=r"stall_timeout_s: inf is above the maximum 3162240000"):
        await rollouts.start(pool, to=canary, steps=[100], interval_s=60, stall_timeout_s=math.inf)
    # Its worker has yet to start.
    await rollouts.start(pool, to=canary, steps=[50, 100], interval_s=3600, allow_no_workers=True)
    await start_worker(Adapted(*canarys), pool=canary)
    await until_ready(fleet, canary)
    with pytest.raises(RolloutError, match=f"serves {missing}, and not every worker.*--allow-rename"):
        await rollouts.promote(pool)
    assert (await rollout_of(fleet, pool)).phase is RolloutPhase.RUNNING
    promoted = await inferfleet("rollout", "promote", pool, "--allow-rename")
    assert promoted.code == 0, promoted.err
    # A repeated order is no new one.
    assert (await rollouts.promote(pool)).phase is RolloutPhase.PROMOTED
    await rollouts.finish(pool)

    start = ("rollout", "start", pool, "--to", canary)
    refused = await inferfleet(*start)
    assert refused.code == 2
    assert f"serves {missing}" in refused.err
    started = await inferfleet(*start, "--allow-rename")
    assert started.code == 0, started.err
    assert (await rollouts.promote(pool)).phase is RolloutPhase.PROMOTED, "it was allowed at the start"


async def test_a_canary_whose_first_worker_has_another_name_is_aborted(
    fleet: Fleet,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    pool: str,
    canary: str,
) -> None:
    """A request that names the model fails there, which is no failure of the canary's in the counts."""
    await start_worker(Adapted("m1"))
    await until_ready(fleet, pool)
    await Rollouts(fleet).start(
        pool, to=canary, steps=[50, 100], interval_s=3600, allow_no_workers=True, worker_timeout_s=0.5
    )
    await start_gateway()
    await start_worker(Adapted("m2"), pool=canary)
    assert "serves 'm1', and not every worker" in await until_aborted(fleet, pool)


async def test_the_jobs_of_a_canary_whose_last_worker_is_gone_move_back_and_run(
    fleet: Fleet,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    pool: str,
    canary: str,
) -> None:
    await start_worker()
    worker = await start_worker(pool=canary)
    await until_ready(fleet, pool, canary)
    await Rollouts(fleet).start(pool, to=canary, steps=[50, 100], interval_s=3600, worker_timeout_s=0.5)
    await until_followed(fleet, pool, RolloutRule(to=canary, weight=50))
    await worker.stop()
    jobs = await fleet.submit_many(some(pool, 40))
    assert {job.pool for job in jobs} == {pool, canary}
    await start_gateway()
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    why = await until_aborted(fleet, pool)
    assert why == f"at 50 %: the canary pool '{canary}' has no ready worker, and jobs wait there, for 0.5 s"


async def test_another_controller_goes_on_counting_for_how_long_there_has_been_no_worker(
    fleet: Fleet,
    producer_settings: Callable[..., ProducerSettings],
    inferfleet: RunCommand,
    pool: str,
    canary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So long that the second one takes over in time, on a busy machine as well.
    monkeypatch.setattr(rollout_control, "LEASE_S", 5.0)
    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    async with background(RolloutController(fleet, producer_settings()).run()):

        async def led() -> bool:
            return bool((await Rollouts(fleet).read(pool)).controller)

        await eventually(led)
        assert (await rollout_of(fleet, pool)).unserved_since is None, "no job waits"
        await until_followed(fleet, pool, RolloutRule(to=canary, weight=100))
        await fleet.submit(chat(), pool=pool)

        async def noted() -> bool:
            return (await rollout_of(fleet, pool)).unserved_since is not None

        await eventually(noted)
        since = (await rollout_of(fleet, pool)).unserved_since
        first = (await Rollouts(fleet).read(pool)).controller
    async with background(RolloutController(fleet, producer_settings()).run()):

        async def led_by_another() -> bool:
            return (await Rollouts(fleet).read(pool)).controller not in {"", first}

        await eventually(led_by_another)
        assert (await rollout_of(fleet, pool)).unserved_since == since
        shown = await inferfleet("rollout", "status", pool)
        assert "aborts after 600 s" in shown.out


async def test_what_a_rollout_was_before_all_gateways_were_away_does_not_abort_it(
    fleet: Fleet,
    pipeline: CommandPipeline,
    producer_settings: Callable[..., ProducerSettings],
    inferfleet: RunCommand,
    store: aioredis.Redis,
    pool: str,
    canary: str,
) -> None:
    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    await until_followed(fleet, pool, RolloutRule(to=canary, weight=100))
    await fleet.submit(chat(), pool=pool)
    revision, rollout, _ = await read_rollout(pipeline, pool)
    assert rollout is not None
    long_ago = pipeline.clock.now() - timedelta(hours=1)
    noted = rollout.model_copy(update={"unserved_since": long_ago})
    await change_rollout(pipeline, noted, revision=revision)
    long_ago_ms = milliseconds(long_ago)
    lease: Any = {"controller": "gone", "until": long_ago_ms, "led_since": long_ago_ms}
    await store.hset(rollout_key(pool), mapping=lease)

    shown = await inferfleet("rollout", "status", pool)
    assert ("aborts after" in shown.out, "no gateway controls" in shown.err) == (False, True)
    in_json = await inferfleet("rollout", "status", pool, "--json")
    assert json.loads(in_json.out)["unserved_since"] is None
    for command in ("pause", "resume"):
        assert "no gateway controls" in (await inferfleet("rollout", command, pool)).err
    async with background(RolloutController(fleet, producer_settings()).run()):

        async def noted_anew() -> bool:
            return (await rollout_of(fleet, pool)).unserved_since is not None

        await eventually(noted_anew)
        now = await rollout_of(fleet, pool)
        assert now.phase is RolloutPhase.RUNNING
        assert now.unserved_since is not None
        assert now.unserved_since > long_ago + timedelta(minutes=30)


async def test_a_controller_that_died_before_the_clock_of_redis_was_set_back_is_not_waited_for(
    pipeline: CommandPipeline, store: aioredis.Redis, pool: str, canary: str
) -> None:
    an_hour_ahead = pipeline.clock.now_ms() + 3600_000
    await store.hset(rollout_key(pool), mapping={"controller": "gone", "until": an_hour_ahead})
    assert await lead_rollout(pipeline, pool, controller="next", lease_s=60)
    assert not await lead_rollout(pipeline, pool, controller="another", lease_s=60)


async def test_a_request_that_is_itself_at_fault_is_no_failure_of_the_pool(
    fleet: Fleet, start_worker: StartWorker, pipeline: CommandPipeline, pool: str
) -> None:
    """Else any caller could abort a rollout with its own requests."""
    await start_worker(heartbeat_interval_s=0.1)
    too_long = Job(pool=pool, body=chat("word " * 100_000, max_tokens=2))
    other_model = Job(pool=pool, body=chat(model="nobody's"))
    own_fault = Job(pool=pool, body=chat(simulated={"fail": "out_of_memory"}), max_attempts=1)
    jobs = await fleet.submit_many([too_long, other_model, own_fault, Job(pool=pool, body=chat())])
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert [result.error and result.error.code for result in results] == [
        FailureCode.PROMPT_TOO_LONG,
        FailureCode.INVALID_REQUEST,
        FailureCode.TOO_MANY_ATTEMPTS,
        None,
    ]

    async def counted() -> bool:
        return (await read_counts(pipeline, pool)).total >= 2

    await eventually(counted)
    counts = await read_counts(pipeline, pool)
    assert (counts.succeeded, counts.failed) == (1, 1)
