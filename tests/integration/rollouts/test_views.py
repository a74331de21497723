"""``inferfleet top`` shows a rollout with what both of its pools have done since the step began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import redis.asyncio as aioredis
import typer
from tests.integration.conftest import PATIENCE_S, StartWorker, chat, eventually
from typer.testing import CliRunner

from inferfleet.cli.top.app import TopApp
from inferfleet.cli.top.command import command
from inferfleet.producer import Fleet
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas import Job
from inferfleet.schemas.fleet_snapshot import RolloutView
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import POOLS_KEY
from inferfleet.schemas.rollout import RolloutPhase, RolloutRule
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.ended_counts import read_counts
from inferfleet.wire.redis.pipeline import CommandPipeline

SOON: dict[str, Any] = {"heartbeat_interval_s": 0.05}


@pytest.fixture
async def seen(
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pipeline: CommandPipeline,
    pool: str,
    canary: str,
) -> RolloutView:
    """A rollout in whose canary pool a third of the attempts fail."""
    await store.delete(POOLS_KEY)
    for name in (pool, canary):
        await start_worker(pool=name, worker_id=f"w-{name}", **SOON)
    fails = Job(pool=canary, body=chat(simulated={"fail": "out_of_memory"}), max_attempts=1)
    await fleet.wait(await fleet.submit(fails), timeout_s=PATIENCE_S)
    assert await rollout_of(fleet, pool) is None

    async def counted() -> bool:
        return (await read_counts(pipeline, canary)).failed == 1

    await eventually(counted)
    await Rollouts(fleet).start(pool, to=canary, steps=(5, 50, 100), interval_s=3600)
    rule = RolloutRule(to=canary, weight=5)
    stay = (job for job in (Job(pool=pool, body=chat()) for _ in range(100)) if not rule.takes(job))
    succeed = [*islice(stay, 2), *(Job(pool=canary, body=chat()) for _ in range(2))]
    fails = fails.model_copy(update={"id": new_job_id()})
    await fleet.wait_many(await fleet.submit_many([fails, *succeed]), timeout_s=PATIENCE_S)
    found: list[RolloutView] = []

    async def complete() -> bool:
        rollout = await rollout_of(fleet, pool)
        found[:] = [rollout] if rollout else []
        return (
            rollout is not None
            and rollout.stable_error_rate == 0
            and rollout.canary_error_rate == pytest.approx(1 / 3)
        )

    await eventually(complete)
    return found[0]


async def rollout_of(fleet: Fleet, pool: str) -> RolloutView | None:
    rollouts = (await fleet.watch.snapshot()).rollouts
    return next((each for each in rollouts if each.pool == pool), None)


async def test_a_snapshot_has_the_step_the_weight_and_both_sides_since_the_step_began(
    fleet: Fleet, seen: RolloutView, pool: str, canary: str
) -> None:
    assert (seen.to, seen.phase, seen.step, seen.steps, seen.weight) == (
        canary,
        RolloutPhase.RUNNING,
        1,
        3,
        5,
    )
    assert seen.ttft_ratio
    await Rollouts(fleet).promote(pool)
    await Rollouts(fleet).finish(pool)
    assert await rollout_of(fleet, pool) is None


async def test_top_shows_it_and_why_it_was_aborted(
    fleet: Fleet,
    seen: RolloutView,
    producer_settings: Callable[..., ProducerSettings],
    environment: dict[str, str],
    pool: str,
    canary: str,
) -> None:
    app = TopApp(producer_settings(), interval_s=0.2)
    async with app.run_test(size=(200, 40)):

        async def shows(*wanted: str) -> bool:
            rows = [app.rollouts.get_row(key) for key in app.rollouts.rows]
            cells = [cell.plain for row in rows for cell in row]
            return app.rollouts.display and cells[: len(wanted)] == list(wanted)

        await eventually(lambda: shows(pool, canary, "running", "1/3", "5%", "0.0%", "33.3%"))
        await Rollouts(fleet).abort(pool, reason="it rhymes")
        await eventually(lambda: shows(pool, canary, "aborting", "1/3", "0%"))

    once = typer.Typer()
    once.command()(command)
    printed = await asyncio.to_thread(lambda: CliRunner(env=environment).invoke(once, ["--once"]))
    assert f"{pool}: its rollout to {canary} is aborting: it rhymes" in printed.stdout
    assert "aborting   1/3      0%    0.0%          33.3%" in printed.stdout
