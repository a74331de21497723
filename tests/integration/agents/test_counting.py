"""What ``inferfleet top`` shows of runs."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
import redis.asyncio as aioredis
from tests.integration.agents.conftest import StartRunner, until
from tests.integration.conftest import RunCommand, eventually

from inferfleet.agents import Agent, AgentRuns, tool
from inferfleet.schemas.fleet_snapshot import AgentQueueView
from inferfleet.schemas.names import AGENT_QUEUES_KEY
from inferfleet.schemas.run import RunState, RunWait
from inferfleet.testing.workers import ScriptedAnswers


@pytest.fixture(autouse=True)
async def queues_of_this_test(store: aioredis.Redis) -> None:
    """Forget the queues of other tests, all of which a snapshot would read."""
    await store.delete(AGENT_QUEUES_KEY)


async def seen(runs: AgentRuns) -> AgentQueueView | None:
    views = (await runs.fleet.watch.snapshot()).agents
    return views[0] if views else None


async def test_top_shows_what_runs_do_and_what_they_wait_for(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, inferfleet: RunCommand, pool: str
) -> None:
    digging = asyncio.Event()

    @tool(needs_approval=True)
    def pay() -> str:
        """Pay."""
        return "paid"

    @tool(timeout_s=1000)
    async def dig() -> str:
        """Dig."""
        digging.set()
        await asyncio.Event().wait()
        return ""

    clerk = Agent(name="clerk", tools=[pay, dig], pool=pool)
    boss = Agent(name="boss", tools=[clerk.as_tool()], pool=pool)
    model.reply_to("delegate", with_calls=[("clerk", {"input": "pay"}), ("clerk", {"input": "pay"})])
    model.reply_to("pay", with_calls=[("pay", {})])
    model.reply_to("dig", with_calls=[("dig", {})])
    assert await seen(runs) is None
    runner = await start_runner(boss)
    await runs.start("boss", "delegate", queue=pool)
    digs = await runs.start("clerk", "dig", queue=pool)

    async def settled() -> bool:
        view = await seen(runs)
        return view is not None and (view.waiting_for_people, view.waiting_for_children) == (2, 1)

    await eventually(settled)
    await digging.wait()
    shown = orjson.loads((await inferfleet("top", "--once", "--json")).out)["agents"]
    assert shown[0].pop("oldest_s") > 0
    counts = {"waiting_for_people": 2, "waiting_for_children": 1, "running": 1, "queued": 0}
    assert shown == [{"queue": pool, "unfinished": 4, "sampled": False, **counts}]
    printed = (await inferfleet("top", "--once")).out.splitlines()
    (title,) = [place for place, line in enumerate(printed) if line.startswith("QUEUE OF RUNS")]
    assert printed[title + 1].split()[:6] == [pool, "4", "0", "1", "2", "1"]
    await runner.stop()
    await until(runs, digs, RunState.QUEUED)
    view = await seen(runs)
    assert view is not None
    assert (view.queued, view.running) == (1, 0)


async def test_the_counts_of_many_runs_are_estimated_and_cheap(
    runs: AgentRuns, queue: str, store: aioredis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await runs.start("clerk", f"{number}", queue=queue) for number in range(700)]
    for run_id in ids[:350]:
        await runs.records.claim(run_id, fence="f", runner="r", lease_s=60)
        settling: Any = {"fence": "f", "told": 0, "waits_for": RunWait.PERSON}
        await runs.records.settle(run_id, RunState.WAITING, **settling)
    view = await seen(runs)
    assert view is not None
    assert (view.unfinished, view.sampled) == (700, True)
    assert view.queued + view.waiting_for_people == pytest.approx(700, abs=1)
    # Every 35 of the list give 25, and the list is in the order in which they were started.
    assert view.queued == pytest.approx(350, abs=50)
