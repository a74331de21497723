"""``inferfleet model swap`` and ``model probe``: one worker after the other, and what is seen of it."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import datetime
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    eventually,
    slow_chat,
    until_running,
    until_tokens,
)
from typer.testing import CliRunner

from inferfleet.cli import model as model_commands
from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.control import SwapModel
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.model_swap import ModelSwap, SwapState
from inferfleet.schemas.names import swap_key
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.ordering import ordering
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.swapping import LEASE_S, SwapFailedError, Swapping

SOON: dict[str, Any] = {"heartbeat_interval_s": 0.1}
NEW = '{"speed": 0, "weights": 7}'


def swap_of(pool: str, *options: str, engine_args: str = NEW) -> tuple[str, ...]:
    return ("model", "swap", "--pool", pool, "--model", "simulated", "--engine-args", engine_args, *options)


@pytest.fixture(autouse=True)
async def _first_command(inferfleet: RunCommand) -> None:
    """Run a command before there are workers: the first one may take longer than a heartbeat lives."""
    assert (await inferfleet("--version")).code == 0


async def workers_of(fleet: Fleet, pool: str) -> dict[str, Heartbeat]:
    return {it.worker_id: it for it in await fleet.workers() if it.pool == pool}


async def until_ready(fleet: Fleet, pool: str, number: int) -> None:
    async def ready() -> bool:
        found = (await workers_of(fleet, pool)).values()
        return sum(it.phase is WorkerPhase.READY for it in found) == number

    await eventually(ready)


async def test_all_workers_of_a_pool_are_changed_one_after_the_other(
    fleet: Fleet, start_worker: StartWorker, inferfleet: RunCommand, pool: str
) -> None:
    for name in ("a", "b"):
        await start_worker(worker_id=f"{pool}-{name}")
    await until_ready(fleet, pool, 2)
    ended = await inferfleet(*swap_of(pool))
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split(maxsplit=1) for line in ended.out.splitlines()]
    names = [worker for worker, _ in lines]
    assert names == sorted(names), ended.out
    assert [told.split(",")[0] for worker, told in lines if worker == f"{pool}-a"][-1] == "done"
    assert len({it.model_identity for it in (await workers_of(fleet, pool)).values()}) == 1

    probed = await inferfleet("model", "probe", "--engine", "simulated", "--engine-args", NEW)
    assert f"done, probe hash {probed.out.strip()}" in ended.out
    checked = await inferfleet(*swap_of(pool, "--probe-hash", probed.out.strip(), "--json"))
    assert checked.code == 0
    assert {swap["state"] for swap in json.loads(checked.out).values()} == {"switched"}


async def test_after_a_failure_no_further_worker_begins(
    fleet: Fleet, start_worker: StartWorker, inferfleet: RunCommand, pool: str
) -> None:
    for name in ("a", "b"):
        await start_worker(worker_id=f"{pool}-{name}")
    await until_ready(fleet, pool, 2)
    ended = await inferfleet(*swap_of(pool, engine_args='{"weights": -1, "speed": 0}'))
    assert ended.code == 1
    assert f"worker {pool}-a keeps its old model: it answers every prompt" in ended.err
    found = await workers_of(fleet, pool)
    assert found[f"{pool}-a"].swap is not None
    assert found[f"{pool}-b"].swap is None


async def until_it_waits(fleet: Fleet, store: aioredis.Redis, pool: str, worker: str) -> None:
    """Wait until a command has the lease and has left this worker alone for three heartbeats."""
    beats = set[datetime]()

    async def waits() -> bool:
        if await store.exists(swap_key(pool)):
            it = (await workers_of(fleet, pool))[worker]
            assert it.swap is None
            beats.add(it.seen_at)
        return len(beats) > 3

    await eventually(waits)


async def test_no_worker_begins_while_another_is_not_ready(
    fleet: Fleet, start_worker: StartWorker, inferfleet: RunCommand, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(worker_id=f"{pool}-a", **SOON)
    await until_ready(fleet, pool, 1)
    loading = await start_worker(worker_id=f"{pool}-b", engine_args={"load_s": 10_000})

    async def two() -> bool:
        return len(await workers_of(fleet, pool)) == 2

    await eventually(two)
    command = asyncio.ensure_future(inferfleet(*swap_of(pool, "--worker", f"{pool}-a")))
    await until_it_waits(fleet, store, pool, f"{pool}-a")
    assert not command.done()
    await loading.stop()
    assert (await command).code == 0


async def test_of_two_commands_at_once_one_swaps_the_pool_and_the_other_says_so(
    fleet: Fleet, start_worker: StartWorker, inferfleet: RunCommand, store: aioredis.Redis, pool: str
) -> None:
    for name in ("a", "b"):
        await start_worker(worker_id=f"{pool}-{name}")
    await until_ready(fleet, pool, 2)
    ended = await asyncio.gather(*(inferfleet(*swap_of(pool, "--json")) for _ in range(2)))
    (swapped,) = [each for each in ended if each.code == 0]
    (refused,) = [each for each in ended if each.code == 1]
    assert "are being swapped by another command" in refused.err
    assert refused.out.strip() == "{}"
    done = {name: swap["swap_id"] for name, swap in json.loads(swapped.out).items()}
    found = await workers_of(fleet, pool)
    assert {name: it.swap.swap_id for name, it in found.items() if it.swap} == done
    assert not await store.exists(swap_key(pool))


async def test_no_worker_begins_while_one_is_in_the_swap_of_a_command_that_has_died(
    fleet: Fleet, start_worker: StartWorker, inferfleet: RunCommand, store: aioredis.Redis, pool: str
) -> None:
    for name in ("a", "b"):
        await start_worker(worker_id=f"{pool}-{name}", **SOON)
    await until_ready(fleet, pool, 2)
    endless = '{"load_s": 10000}'
    dying = asyncio.ensure_future(inferfleet(*swap_of(pool, "--worker", f"{pool}-a", engine_args=endless)))

    async def begun() -> bool:
        swap = (await workers_of(fleet, pool))[f"{pool}-a"].swap
        return swap is not None and swap.busy

    await eventually(begun)
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    lease = await store.pttl(swap_key(pool))
    assert 0 < lease <= LEASE_S * 1000
    await store.delete(swap_key(pool))

    command = asyncio.ensure_future(inferfleet(*swap_of(pool, "--worker", f"{pool}-b")))
    await until_it_waits(fleet, store, pool, f"{pool}-b")
    command.cancel()
    await asyncio.gather(command, return_exceptions=True)


async def test_the_lease_is_renewed_until_the_others_end_after_one_has_failed(
    fleet: Fleet, start_worker: StartWorker, pipeline: CommandPipeline, services: Services, pool: str
) -> None:
    workers = [await start_worker(worker_id=f"{pool}-{name}", **SOON) for name in ("a", "b")]
    await until_ready(fleet, pool, 2)
    failed = asyncio.Event()

    def tell(worker: str, swap: ModelSwap) -> None:
        if swap.state is SwapState.ROLLED_BACK:
            failed.set()

    orders = [
        SwapModel(swap_id=uuid4().hex, worker_id=f"{pool}-{name}", model="simulated", engine_args=arguments)
        for name, arguments in (("a", {"weights": -1, "speed": 0}), ("b", {"load_s": 10_000}))
    ]
    settings = ServiceSettings(amqp_url=services.amqp_url, redis_url=services.redis_url)
    async with ordering(settings, name="test") as (_, send):
        swapping = Swapping(pipeline, send, tell, pool=pool, max_unavailable=2)
        command = asyncio.create_task(swapping.run(orders))
        await failed.wait()
        for _ in range(2):
            await pipeline.execute("PEXPIRE", swap_key(pool), 10_000)
            await eventually(partial(longer, pipeline, swap_key(pool), 10_000))
        assert not command.done()
        await workers[1].stop()
        with pytest.raises(SwapFailedError, match=f"worker {pool}-a keeps its old model"):
            await command


@pytest.mark.parametrize("service", ["redis", "amqp"])
async def test_all_workers_are_changed_although_a_service_is_away_after_the_first_has_begun(
    fleet: Fleet,
    services: Services,
    start_worker: StartWorker,
    environment: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    pool: str,
    service: str,
) -> None:
    await start_worker(worker_id=f"{pool}-a", **SOON)
    await until_ready(fleet, pool, 1)
    running = await fleet.submit(slow_chat(tokens=10_000, step_s=0.1), pool=pool)
    await until_running(fleet, running)
    await start_worker(worker_id=f"{pool}-b", **SOON)
    await until_ready(fleet, pool, 2)
    link = Proxy(services.redis_url if service == "redis" else services.amqp_url)
    runner = CliRunner(env={**environment, f"INFERFLEET_{service.upper()}_URL": link.url})
    arguments = swap_of(pool, "--drain-timeout", "1000")[1:]

    async def waits_for_the_answer() -> bool:
        swap = (await workers_of(fleet, pool))[f"{pool}-a"].swap
        return swap is not None and swap.state is SwapState.SWITCHED and swap.busy

    async def noticed() -> bool:
        return command.done() or f"127.0.0.1:{link.url.rpartition(':')[2].split('/')[0]}" in caplog.text

    async with link:
        command = asyncio.ensure_future(
            asyncio.to_thread(lambda: runner.invoke(model_commands.app, arguments))
        )
        await eventually(waits_for_the_answer)
    await fleet.cancel(running)
    await eventually(noticed)
    assert not command.done()
    async with link:
        ended = await asyncio.wait_for(command, PATIENCE_S)
    assert (ended.exit_code, ended.exception) == (0, None), ended.output
    assert len({it.model_identity for it in (await workers_of(fleet, pool)).values()}) == 1


async def longer(pipeline: CommandPipeline, key: str, than_ms: int) -> bool:
    """Whether a key lives longer than that."""
    lives: int = await pipeline.execute("PTTL", key)
    return lives > than_ms


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--worker", "nobody"), "no worker 'nobody' of pool 'test-"),
        (("--strategy", "sleep"), "there is no strategy 'sleep'"),
        (("--strategy", "hot"), "'hot' is not one of side-by-side, restart"),
        (("--engine-args", "[]"), "--engine-args is not a JSON object"),
        (("--probe-hash", ""), "is empty"),
    ],
)
async def test_what_cannot_be_is_refused(
    fleet: Fleet,
    start_worker: StartWorker,
    inferfleet: RunCommand,
    pool: str,
    options: tuple[str, ...],
    says: str,
) -> None:
    await start_worker(worker_id=f"{pool}-a")
    await until_ready(fleet, pool, 1)
    ended = await inferfleet(*swap_of(pool, *options))
    assert ended.code != 0
    assert says in " ".join(ended.err.split())
    assert (await workers_of(fleet, pool))[f"{pool}-a"].swap is None


async def test_a_pool_without_workers_cannot_be_changed(inferfleet: RunCommand, pool: str) -> None:
    ended = await inferfleet(*swap_of(pool))
    assert ended.code == 2
    assert "has no live worker" in ended.err


SLOW = {
    SwapState.LOADING: {"load_s": 10_000},
    # Each of the probe's tokens takes a minute.
    SwapState.PROBING: {"decode_step_base_s": 60},
    SwapState.DRAINING: {"weights": 7},
    SwapState.SWITCHED: {"speed": 0, "weights": 7},
}


@pytest.mark.parametrize("state", SLOW)
async def test_the_jobs_of_a_worker_that_dies_while_it_swaps_resume_elsewhere(
    fleet: Fleet,
    start_worker: StartWorker,
    start_worker_process: StartWorkerProcess,
    inferfleet: RunCommand,
    pool: str,
    state: SwapState,
) -> None:
    dying = await start_worker_process(
        *("--worker-id", f"{pool}-a", "--max-running", "3"), lease_s="1", engine_args='{"speed": 0}'
    )
    await dying.logged("ready")
    jobs = [
        await fleet.submit(slow_chat(f"{n}", tokens=800, step_s=0.03), pool=pool, stream=True)
        for n in range(2)
    ]
    for job in jobs:
        await until_tokens(fleet, job, 5)
    strategy = "restart" if state is SwapState.DRAINING else "side-by-side"
    options = ("--strategy", strategy, "--drain-timeout", "100")
    command = asyncio.ensure_future(inferfleet(*swap_of(pool, *options, engine_args=json.dumps(SLOW[state]))))

    async def reached() -> bool:
        swap = (await workers_of(fleet, pool))[f"{pool}-a"].swap
        return swap is not None and swap.state is state

    await eventually(reached)
    dying.signal(signal.SIGKILL)
    await dying.ended()
    await start_worker()
    for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=PATIENCE_S), strict=True):
        assert result.raise_for_state().text == answer_to(job)
        record: Any = await fleet.get(job)
        assert record.attempt == 2
    ended = await command
    assert ended.code == 1
    assert f"worker {pool}-a ended while its swap was {state}" in ended.err
