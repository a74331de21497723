"""A canary pool whose workers are ready and do nothing: they hang, or somebody has paused the pool."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.conftest import (
    INSTANT,
    PATIENCE_S,
    RunCommand,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    until_running,
)
from tests.integration.rollouts.conftest import some, until_followed, until_ready

from inferfleet.producer import Fleet, rollout_control
from inferfleet.producer.rollout_steps import next_of
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.rollout import Rollout, RolloutPhase, RolloutRule
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import Generation

SOON: dict[str, Any] = {"heartbeat_interval_s": 0.1}
STALL_S = 0.5
SLOTS = 2
HUNG: dict[str, Any] = {"max_running": SLOTS, "drain_timeout_s": 0.1, **SOON}


class Hanging(SimulatedEngine):
    """Takes requests, and answers none."""

    def __init__(self) -> None:
        super().__init__(model="simulated", max_running=SLOTS, engine_args=INSTANT)

    async def generate(self, generation: Generation) -> AsyncGenerator[Any]:
        await asyncio.Event().wait()
        yield


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """Let the controller look often. Returns the rollouts at which it looked while the pool was on hold."""
    seen: list[Rollout] = []

    def noting(rollout: Rollout, **found: Any) -> Rollout | None:
        if found["on_hold"]:
            seen.append(rollout.model_copy(update={"since": found["now"]}))
        return next_of(rollout, **found)

    monkeypatch.setattr(rollout_control, "LOOK_S", 0.1)
    monkeypatch.setattr(rollout_control, "SETTLE_S", 0.5)
    monkeypatch.setattr(rollout_control, "next_of", noting)
    return seen


async def until_phase(fleet: Fleet, pool: str, *phases: RolloutPhase) -> Rollout:
    async def there() -> bool:
        return (await rollout_of(fleet, pool)).phase in phases

    await eventually(there)
    return await rollout_of(fleet, pool)


async def rollout_of(fleet: Fleet, pool: str) -> Rollout:
    rollout = (await Rollouts(fleet).read(pool)).rollout
    assert rollout is not None
    return rollout


@pytest.mark.usefixtures("looks")
async def test_the_jobs_of_a_canary_whose_workers_hang_move_back_and_run(
    fleet: Fleet,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    inferfleet: RunCommand,
    pool: str,
    canary: str,
) -> None:
    await start_worker()
    hung = await start_worker(Hanging(), pool=canary, **HUNG)
    await until_ready(fleet, pool, canary)
    start = ("rollout", "start", pool, "--to", canary, "--steps", "50,100", "--stall-timeout")
    refused = await inferfleet(*start, "soon")
    assert (refused.code, "'soon' is not a duration" in refused.err) == (2, True)
    started = await inferfleet(*start, f"{STALL_S}s")
    assert started.code == 0, started.err
    await until_followed(fleet, pool, RolloutRule(to=canary, weight=50))
    jobs = await fleet.submit_many(some(pool, 40))
    assert {job.pool for job in jobs} == {pool, canary}
    await start_gateway()

    rollout = await until_phase(fleet, pool, RolloutPhase.ABORTING, RolloutPhase.ABORTED)
    assert rollout.reason == (
        f"at 50 %: jobs wait in the canary pool {canary!r}, whose workers have ended no attempt and "
        f"generated no token for {STALL_S:g} s"
    )
    # What a worker holds stays there until it is stopped.
    await hung.stop()
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    await until_phase(fleet, pool, RolloutPhase.ABORTED)


@pytest.mark.usefixtures("looks")
async def test_the_turns_behind_one_that_hangs_in_the_canary_count_as_waiting(
    fleet: Fleet, start_worker: StartWorker, start_gateway: StartGateway, pool: str, canary: str
) -> None:
    await start_worker(Hanging(), pool=canary, **HUNG)
    await until_ready(fleet, canary)
    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, stall_timeout_s=STALL_S)
    await until_followed(fleet, pool, RolloutRule(to=canary, weight=100))
    for _ in range(2):
        await fleet.submit(chat(), pool=pool, session_id=f"s-{pool}")
    await start_gateway()
    await until_phase(fleet, pool, RolloutPhase.ABORTING)


async def test_a_rollout_waits_for_a_canary_that_somebody_has_paused_and_says_so(
    fleet: Fleet,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    inferfleet: RunCommand,
    looks: list[Rollout],
    pool: str,
    canary: str,
) -> None:
    await start_worker(pool=canary, **SOON)
    await until_ready(fleet, canary)
    await Rollouts(fleet).start(
        pool, to=canary, steps=[100], interval_s=3600, stall_timeout_s=STALL_S, worker_timeout_s=STALL_S
    )
    await until_followed(fleet, pool, RolloutRule(to=canary, weight=100))
    await fleet.pause_pool(canary)
    job = await fleet.submit(chat(), pool=pool)
    await start_gateway()

    async def looked_for_longer_than_the_timeouts() -> bool:
        return bool(looks) and looks[-1].since - looks[0].since > timedelta(seconds=2 * STALL_S)

    await eventually(looked_for_longer_than_the_timeouts)
    assert {each.phase for each in looks} == {RolloutPhase.RUNNING}
    shown = await inferfleet("rollout", "status", pool)
    assert "the canary pool has been paused since" in shown.out
    assert f"`inferfleet pool resume {canary}`" in shown.out
    as_json = json.loads((await inferfleet("rollout", "status", pool, "--json")).out)
    assert as_json["canary_paused_at"]

    await fleet.resume_pool(canary)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_the_status_says_since_when_nothing_goes_on_and_jobs_that_only_run_do_not_count(
    fleet: Fleet,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    inferfleet: RunCommand,
    looks: list[Rollout],
    pool: str,
    canary: str,
) -> None:
    await start_worker(Hanging(), pool=canary, **HUNG)
    await until_ready(fleet, canary)
    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600)
    await until_followed(fleet, pool, RolloutRule(to=canary, weight=100))
    for _ in range(SLOTS):
        await until_running(fleet, await fleet.submit(chat(), pool=pool))
    await start_gateway()

    async def led() -> bool:
        return bool((await Rollouts(fleet).read(pool)).controller)

    async def stalled() -> bool:
        return (await rollout_of(fleet, pool)).stalled_since is not None

    await eventually(led)
    assert not await stalled()
    await fleet.submit(Job(pool=pool, body=chat()))
    await eventually(stalled)
    shown = await inferfleet("rollout", "status", pool)
    assert "whose workers have ended no attempt and generated no token since" in shown.out
    assert "aborts after 300 s of that" in shown.out
