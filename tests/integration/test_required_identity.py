"""A pool requires a model identity: a worker with another one serves nothing, and says why."""

from __future__ import annotations

from typing import Any

import pytest
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
from tests.integration.test_model_swap import NEW, Swapped, identity

from inferfleet.producer import Fleet
from inferfleet.schemas import JobState
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.heartbeat import WorkerPhase

SOON: dict[str, Any] = {"heartbeat_interval_s": 0.2}


async def test_a_worker_serves_again_after_a_swap_to_the_required_model(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker(worker_id=f"{pool}-w", max_running=1, **SOON)
    swapped = Swapped(fleet, foreign, f"{pool}-w")
    running = await fleet.submit(slow_chat(tokens=60, step_s=0.05), pool=pool)
    await until_running(fleet, running)
    waiting = await fleet.submit(chat(), pool=pool)

    await fleet.require_identity(pool, identity(7))

    unfit = await swapped.until(lambda it: it.unfit != "")
    assert unfit.phase is WorkerPhase.LOADING
    assert unfit.unfit == f"pool {pool} requires model {identity(7)}, but this worker has {identity(0)}"
    assert (await fleet.wait(running, timeout_s=PATIENCE_S)).model_identity == identity(0)

    async def given_back() -> bool:
        return await foreign.waiting() == 1

    await eventually(given_back)
    assert unfit.unfit in (await fleet.position(waiting)).waits[-1].detail
    assert worker.worker.phase is WorkerPhase.LOADING

    await swapped.order()
    assert (await fleet.wait(waiting, timeout_s=PATIENCE_S)).model_identity == identity(7)
    await swapped.until(lambda it: it.unfit == "")


async def test_a_worker_that_starts_with_another_model_takes_nothing_until_any_will_do(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, inferfleet: RunCommand, pool: str
) -> None:
    told = await inferfleet("pool", "require-identity", pool, identity(7))
    assert (told.code, told.out) == (0, f"requires {identity(7)}\n")
    assert (await fleet.pool(pool)).required_identity == identity(7)
    job = await fleet.submit(chat(), pool=pool)
    await start_worker(worker_id=f"{pool}-w", **SOON)
    await Swapped(fleet, foreign, f"{pool}-w").until(lambda it: it.unfit != "")
    record = await fleet.get(job)
    assert record is not None
    assert record.state is JobState.QUEUED

    found = await inferfleet("doctor", "--pool", pool)
    assert found.code == 1
    assert f"{pool}-w: it serves nothing: pool {pool} requires model {identity(7)}" in found.out

    other = await start_worker(engine_args=NEW, **SOON)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).model_identity == identity(7)
    await other.stop()
    assert (await inferfleet("pool", "require-identity", pool, "--none")).code == 0
    job = await fleet.submit(chat(), pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).model_identity == identity(0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "either an identity or --none"),
        (("0123456789abcdef", "--none"), "either an identity or --none"),
        (("v2",), "'v2' is not an identity"),
    ],
)
async def test_only_an_identity_can_be_required(
    fleet: Fleet, inferfleet: RunCommand, pool: str, arguments: tuple[str, ...], says: str
) -> None:
    ended = await inferfleet("pool", "require-identity", pool, *arguments)
    assert ended.code == 2
    assert says in ended.err


@pytest.mark.parametrize("wrong", ["", "latest", 5, "\ud800", "D92803C5FF1F8585"])
async def test_what_no_model_can_be_is_not_required(fleet: Fleet, pool: str, wrong: Any) -> None:
    """No worker would serve the pool any more."""
    with pytest.raises(InvalidJobError, match=r"^identity: .* is not one, which has 16 hexadecimal digits"):
        await fleet.require_identity(pool, wrong)
    assert (await fleet.pool(pool)).required_identity is None
