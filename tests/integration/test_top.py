"""``inferfleet top`` on real services: what it shows, what its keys do, and outages."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio as aioredis
import typer
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    RunCommand,
    RunningWorker,
    StartWorker,
    chat,
    eventually,
    slow_chat,
    until_running,
)
from textual.pilot import Pilot
from textual.widgets import Input, Static
from typer.testing import CliRunner

from inferfleet.cli.top.app import TopApp
from inferfleet.cli.top.command import command
from inferfleet.cli.top.screens import JobsScreen, Question, TextScreen, TextTable
from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet, fleet_watch
from inferfleet.schemas import Job
from inferfleet.schemas.fleet_snapshot import FleetSnapshot, GateReason, PoolView
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.names import POOLS_KEY, worker_key
from inferfleet.schemas.settings import ProducerSettings

SOON: dict[str, Any] = {"heartbeat_interval_s": 0.05}

Settings = Callable[..., ProducerSettings]


@pytest.fixture(autouse=True)
async def pools_of_this_test(store: aioredis.Redis) -> None:
    """Forget the pools of other tests, all of which a snapshot would read."""
    await store.delete(POOLS_KEY)


@asynccontextmanager
async def watching(
    settings: ProducerSettings, *, width: int = 200
) -> AsyncIterator[tuple[TopApp, Pilot[Any]]]:
    app = TopApp(settings, interval_s=0.2)
    async with app.run_test(size=(width, 40)) as pilot:
        yield app, pilot


async def until(condition: Callable[[], Any]) -> None:
    async def holds() -> bool:
        return bool(condition())

    await eventually(holds)


def rows(table: TextTable) -> dict[str | None, list[str]]:
    """The rows of a table, by key."""
    return {key.value: [cell.plain for cell in table.get_row(key)] for key in table.rows}


def titles(table: TextTable) -> list[str | None]:
    return [key.value for key in table.columns]


def text(app: TopApp, where: str) -> str:
    return str(app.screen.query_one(where, Static).content)


def view(snapshot: FleetSnapshot, pool: str) -> PoolView:
    (found,) = [each for each in snapshot.pools if each.pool == pool]
    return found


async def select(pilot: Pilot[Any], table: TextTable, key: str) -> None:
    """Put the cursor on a row, once it is there."""
    await until(lambda: key in rows(table))
    table.focus()
    table.move_cursor(row=table.get_row_index(key))
    await pilot.pause()


async def busy_worker(fleet: Fleet, start_worker: StartWorker, pool: str) -> tuple[RunningWorker, Job]:
    """A worker with one slot, in which a job runs."""
    worker = await start_worker(max_running=1, look_ahead=0, worker_id=f"w-{pool}", **SOON)
    running = await fleet.submit(slow_chat(tokens=5000, step_s=0.02), pool=pool, priority=9)
    await until_running(fleet, running)
    return worker, running


# Snapshots


@pytest.mark.store
async def test_a_snapshot_agrees_with_the_fleet(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    await busy_worker(fleet, start_worker, pool)
    await fleet.submit_many(Job(pool=pool, body=chat(), priority=n) for n in (2, 2, 7))

    async def known() -> bool:
        seen = view(await fleet.watch.snapshot(), pool)
        return (seen.ready, seen.held) == (3, 1) and bool(seen.tokens_per_s)

    await eventually(known)
    snapshot, status = await fleet.watch.snapshot(), await fleet.pool(pool)
    (worker,) = status.workers
    seen = view(snapshot, pool)
    for name in ("ready", "held", "dead_letters", "unfinished", "paused_at"):
        assert getattr(seen, name) == getattr(status, name), name
    assert seen.oldest_waiting_s == pytest.approx(status.oldest_waiting_s, abs=PATIENCE_S)
    assert [it.worker_id for it in seen.workers] == [worker.worker_id]
    # 50 tokens a second, at most: the engine sleeps for each.
    assert 0 < (seen.tokens_per_s or 0) <= 50 * 1.1
    assert (seen.gates, snapshot.unreachable) == ((), {})


async def test_the_ended_jobs_of_a_busy_worker_do_not_hide_those_that_failed(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(worker_id=f"w-{pool}", **SOON)
    failing = chat("fails", simulated={"fail": "engine_error", "fail_times": 9})
    failed = await fleet.submit(failing, pool=pool, tenant="acme", max_attempts=1)
    await fleet.wait(failed, timeout_s=PATIENCE_S)
    good = await fleet.submit_many(Job(pool=pool, body=chat(f"{n}"), priority=7) for n in range(20))
    await fleet.wait_many(good, timeout_s=PATIENCE_S)

    # A heartbeat has the last five, and a snapshot remembers those of earlier heartbeats.
    async def shown() -> bool:
        return len((await fleet.watch.snapshot()).ended) >= 6

    await eventually(shown)
    *succeeded, bad = (await fleet.watch.snapshot()).ended
    assert {job.id for job in succeeded} <= {job.id for job in good}
    assert {(job.state, job.priority, job.code) for job in succeeded} == {("succeeded", 7, None)}
    assert (bad.id, bad.state, bad.tenant, bad.pool) == (failed.id, "failed", "acme", pool)
    assert (bad.worker_id, bad.code) == (f"w-{pool}", "too_many_attempts")
    assert view(await fleet.watch.snapshot(), pool).queue_wait_s is not None

    # As a worker of version 0.2 writes its heartbeat.
    for running in [it async for it in store.scan_iter(worker_key(f"w-{pool}"))]:
        await store.hdel(running, "ended", "finished_per_s", "tokens_per_s")
    assert view(await fleet.watch.snapshot(), pool).workers


async def test_every_closed_gate_is_told(
    fleet: Fleet, connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    async def reasons() -> set[GateReason]:
        return {gate.reason for gate in view(await fleet.watch.snapshot(), pool).gates}

    assert await reasons() == set()
    first = await fleet.submit(
        slow_chat(tokens=5000, step_s=0.02), pool=pool, session_id=f"s-{pool}", priority=9
    )
    await fleet.submit("turn", pool=pool, session_id=f"s-{pool}")
    await fleet.pause_pool(pool)
    assert await reasons() == {GateReason.PAUSED, GateReason.NO_WORKER, GateReason.TURN}
    await fleet.resume_pool(pool)
    await start_worker(max_running=1, look_ahead=1, **SOON)
    await until_running(fleet, first)
    await fleet.submit("held", pool=pool)

    async def holds() -> bool:
        return await reasons() == {GateReason.SLOT, GateReason.TURN}

    await eventually(holds)
    async with connect(queue_max_length=1) as small:
        other = f"{pool}-small"
        await small.declare_pool(other)
        await small.submit("one", pool=other)
        gates = view(await fleet.watch.snapshot(), other).gates
    assert {gate.reason for gate in gates} == {GateReason.NO_WORKER, GateReason.FULL}


async def test_one_snapshot_is_printed(
    fleet: Fleet, start_worker: StartWorker, environment: dict[str, str], pool: str
) -> None:
    _, running = await busy_worker(fleet, start_worker, pool)
    await fleet.submit("waits", pool=pool, priority=3)
    app = typer.Typer()
    app.command()(command)

    async def top(*arguments: str) -> str:
        runner = CliRunner(env=environment)
        result = await asyncio.to_thread(lambda: runner.invoke(app, ["--once", *arguments]))
        assert not result.exception, result.exception
        return result.stdout

    async def has_a_rate() -> bool:
        return any(worker.tokens_per_s for worker in await fleet.workers() if worker.pool == pool)

    await eventually(has_a_rate)
    snapshot = FleetSnapshot.model_validate(json.loads(await top("--json")))
    seen = view(snapshot, pool)
    assert seen.unfinished == {9: 1, 3: 1}
    assert seen.workers[0].tokens_per_s

    printed = await top()
    (of_pool, of_worker) = [line.split() for line in printed.splitlines() if pool in line.split()]
    assert of_pool[:3] == [pool, "2", "1"]
    assert "9:1 3:1" in printed
    assert of_worker[:4] == [f"w-{pool}", pool, "ready", "1"]
    await fleet.cancel(running)


async def test_top_needs_a_terminal_and_says_what_does_not(inferfleet: RunCommand) -> None:
    ended = await inferfleet("top")
    assert (ended.code, ended.out) == (2, "")
    assert "--once" in ended.err
    ended = await inferfleet("top", "--json")
    assert ended.code == 2
    assert "add --once" in ended.err
    ended = await inferfleet("top", "--once", environment={"INFERFLEET_AMQP_URL": "amqp://127.0.0.1:1"})
    assert ended.code == 3
    assert "cannot read RabbitMQ" in ended.err


# The live view


async def test_the_view_shows_the_numbers_and_as_many_columns_as_fit(
    fleet: Fleet, start_worker: StartWorker, producer_settings: Settings, pool: str
) -> None:
    await busy_worker(fleet, start_worker, pool)
    await fleet.submit_many(Job(pool=pool, body=chat()) for _ in range(3))
    async with watching(producer_settings()) as (app, pilot):
        await until(lambda: rows(app.pools).get(pool, [])[1:4] == ["4", "1", "3"])
        await until(lambda: rows(app.workers_table)[f"w-{pool}"][2:4] == ["ready", "1"])
        assert re.fullmatch(r"\d+% [█░]{8}", rows(app.workers_table)[f"w-{pool}"][5])
        assert titles(app.pools)[-1] == "BY PRIORITY"
        assert rows(app.pools)[pool][-1] == "9:1 4:3"
        await pilot.resize_terminal(60, 20)
        await until(lambda: "BY PRIORITY" not in titles(app.pools))
        assert titles(app.pools)[:2] == ["POOL", "JOBS"]
        assert titles(app.pools)[-1] == "CLOSED GATES"


async def test_keys_pause_and_resume_a_pool_only_after_a_yes(
    fleet: Fleet, producer_settings: Settings, pool: str
) -> None:
    async def paused() -> bool:
        return (await fleet.pool(pool)).paused_at is not None

    async with watching(producer_settings()) as (app, pilot):
        await select(pilot, app.pools, pool)
        for key in ("n", "escape"):
            await pilot.press("p")
            assert isinstance(app.screen, Question)
            await pilot.press(key)
            assert not isinstance(app.screen, Question)
        assert not await paused()
        await pilot.press("p", "y")
        await eventually(paused)
        await until(lambda: "paused" in rows(app.pools)[pool][-2])
        assert f"{pool}: paused since" in text(app, "#gates")
        await pilot.press("p", "y")
        await until(lambda: "paused" not in rows(app.pools)[pool][-2])
        assert not await paused()


async def test_a_key_drains_a_worker(
    fleet: Fleet, start_worker: StartWorker, producer_settings: Settings, pool: str
) -> None:
    # A worker whose heartbeat has run out cannot be drained; by default none does on a busy machine.
    worker = await start_worker(worker_id=f"w-{pool}")
    async with watching(producer_settings()) as (app, pilot):
        await until(lambda: worker.worker.phase is WorkerPhase.READY)
        await select(pilot, app.workers_table, f"w-{pool}")
        await pilot.press("d", "y")
        await asyncio.wait_for(asyncio.shield(worker.running), PATIENCE_S)
        await until(lambda: f"w-{pool}" not in rows(app.workers_table))


async def test_jobs_are_opened_from_a_pool_from_the_ended_ones_and_by_id(
    fleet: Fleet, start_worker: StartWorker, producer_settings: Settings, pool: str
) -> None:
    waiting = await fleet.submit("waits", pool=pool)
    async with watching(producer_settings()) as (app, pilot):
        await select(pilot, app.pools, pool)
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, JobsScreen))
        assert list(rows(app.screen.query_one(TextTable))) == [waiting.id]
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, TextScreen) and "waits: no worker" in text(app, "#text"))

        # The open job goes on.
        await start_worker(**SOON)
        await until(lambda: "succeeded, with" in text(app, "#text"))
        await pilot.press("escape")
        assert len(app.screen_stack) == 1

        await select(pilot, app.ended, waiting.id)
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, TextScreen) and "succeeded, with" in text(app, "#text"))
        await pilot.press("escape", "j")
        app.screen.query_one(Input).value = "unheard-of"
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, TextScreen) and "unheard-of" in text(app, "#text"))


@pytest.mark.usefixtures("one_redis")
async def test_an_outage_is_shown_and_the_view_goes_on(
    services: Services, fleet: Fleet, producer_settings: Settings, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_watch, "ANSWER_S", 0.5)
    async with Proxy(services.amqp_url) as rabbitmq, Proxy(services.redis_url) as redis:
        redis.hold(*Direction)
        settings = producer_settings(amqp_url=rabbitmq.url, redis_url=redis.url)
        async with watching(settings) as (app, _):
            await until(lambda: "cannot read Redis" in text(app, "#outages"))
            redis.heal()
            await until(lambda: rows(app.pools).get(pool, [])[1:4] == ["0", "0", "0"])
            assert not app.query_one("#outages").display

            rabbitmq.hold(*Direction)
            await until(lambda: "cannot read RabbitMQ" in text(app, "#outages"))
            # The pool is known by its queue alone.
            assert rows(app.pools)[pool][1:4] == ["0", "0", "-"]
            await fleet.submit("hello", pool=pool)
            await until(lambda: rows(app.pools)[pool][1:4] == ["1", "0", "-"])
            connected = rabbitmq.accepted
            rabbitmq.reset()
            rabbitmq.heal()
            await until(lambda: rows(app.pools)[pool][1:4] == ["1", "0", "1"])
            assert rabbitmq.accepted > connected

            redis.hold(*Direction)
            await until(lambda: "cannot read Redis, so this is the fleet at" in text(app, "#outages"))
            assert rows(app.pools)[pool][1:4] == ["1", "0", "1"]
            connected = redis.accepted
            redis.reset()
            redis.heal()
            await until(lambda: not app.query_one("#outages").display)
            assert redis.accepted > connected


# The terminal


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM], ids=["q", "ctrl-c", "sigterm"])
async def test_the_terminal_is_restored(environment: dict[str, str], end: str | signal.Signals) -> None:
    terminal, child = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "inferfleet.cli", "top", "--interval", "0.2"],
        env=environment | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
        stdin=child,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(terminal, 65_536):
                shown.extend(data)
        except OSError:
            return

    reading = asyncio.create_task(asyncio.to_thread(read))
    await until(lambda: b"JOBS" in shown or reading.done())
    if isinstance(end, str):
        os.write(terminal, end.encode())
    else:
        process.send_signal(end)
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    await reading
    os.close(terminal)
    # Out of the alternate screen, with the cursor.
    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == 1
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"Traceback" not in shown
