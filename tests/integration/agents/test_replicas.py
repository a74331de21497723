"""With ``INFERFLEET_REDIS_WAIT_REPLICAS``, a failover of Redis forgets no run, and no call that was made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.agents.conftest import StartRunner, only_question, result_of, until
from tests.integration.conftest import Connect, ForeignClient, StartWorker, eventually
from tests.integration.redis_pair import Pair, redis_pair

from inferfleet.agents import Agent, AgentRuns, tool
from inferfleet.local.chaos.proxy import Direction
from inferfleet.local.services.redis_process import redis_binary
from inferfleet.schemas.errors import ServiceRefusedError
from inferfleet.schemas.names import run_key, run_queue, run_steps_key
from inferfleet.schemas.run import RunState
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.testing.workers import ScriptedAnswers

pytestmark = pytest.mark.skipif(redis_binary() is None, reason="no redis-server here")

WAITS: dict[str, Any] = {"redis_wait_replicas": 1, "redis_wait_timeout_ms": 200}


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with redis_pair() as pair:
        yield pair


async def test_a_run_that_was_started_is_on_the_replica(
    pair: Pair, connect: Connect, queue: str, foreign: ForeignClient
) -> None:
    async with connect(redis_url=pair.url, **WAITS) as fleet:
        runs = AgentRuns(fleet)
        run_id = await runs.start("clerk", "go", queue=queue)
        assert await pair.replica.hget(run_key(run_id), "state") == b"queued"
        await foreign.channel.queue_purge(run_queue(queue))
        pair.link.hold(Direction.TO_CLIENT)
        with pytest.raises(ServiceRefusedError, match="0 of 1 replicas"):
            await runs.start("clerk", "go", queue=queue)
        assert (await foreign.channel.queue_purge(run_queue(queue))).message_count == 0


async def test_a_call_that_must_not_be_repeated_is_made_once_the_replica_knows_of_it(
    pair: Pair,
    connect: Connect,
    start_worker: StartWorker,
    start_runner: StartRunner,
    pool: str,
    tmp_path: Path,
) -> None:
    paid: list[list[Any]] = []

    @tool(needs_approval=True)
    async def pay() -> str:
        """Pay."""
        paid.append(await pair.replica.lrange(run_steps_key(run_id), -1, -1))
        return "paid"

    script = Script(tmp_path)
    await start_worker(ScriptedEngine(model="scripted", max_running=1, script=script), redis_url=pair.url)
    ScriptedAnswers(script).reply_to("go", with_calls=[("pay", {})])
    ScriptedAnswers(script).reply_to("paid", with_text="It is paid.")
    async with connect(redis_url=pair.url) as fleet:
        await fleet.declare_pool(pool)
        runs = AgentRuns(fleet)
        await start_runner(Agent(name="clerk", tools=[pay], pool=pool), redis_url=pair.url, **WAITS)
        run_id = await runs.start("clerk", "go", queue=pool)
        await until(runs, run_id, RunState.WAITING)
        pair.link.hold(Direction.TO_CLIENT)
        waited = await pair.waits()
        await runs.approve(run_id, await only_question(runs, run_id))

        async def waits_again() -> bool:
            return await pair.waits() > waited + 1

        await eventually(waits_again)
        assert [step.kind for step in await runs.steps(run_id)][-1] == "tool_started"
        assert paid == []
        pair.link.heal()
        assert (await result_of(runs, run_id)).text == "It is paid."
    ((known,),) = paid
    assert b"tool_started" in known
