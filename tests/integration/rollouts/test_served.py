"""A canary pool that cannot serve the jobs of its pool: it has no worker, or lacks a model that jobs name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
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
from inferfleet.schemas.rollout import Rollout, RolloutPhase, RolloutRule
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.ended_counts import read_counts
from inferfleet.wire.redis.pipeline import CommandPipeline
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
    monkeypatch.setattr(rollout_control, "LEASE_S", 1.0)
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
    async with background(RolloutController(fleet, producer_settings()).run()):
        await eventually(led)
        assert (await rollout_of(fleet, pool)).unserved_since == since
    shown = await inferfleet("rollout", "status", pool)
    assert "aborts after 600 s" in shown.out


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
