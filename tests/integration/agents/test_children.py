"""Agents that call other agents."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
import redis.asyncio as aioredis
from tests.integration.agents.conftest import RunningRunner, StartRunner, result_of, until
from tests.integration.conftest import PATIENCE_S, ForeignClient, eventually

from inferfleet.agents import Agent, AgentRuns, RunLimits, tool
from inferfleet.producer import Fleet
from inferfleet.schemas.names import run_key, run_queue
from inferfleet.schemas.run import ChildStarted, ModelCalled, RunFailureCode, RunState
from inferfleet.testing.workers import ScriptedAnswers

pytestmark = pytest.mark.store


def team(pool: str, **of_the_parent: object) -> Agent:
    researcher = Agent(name="researcher", description="Knows facts.", pool=pool, priority=7)
    return Agent(name="planner", tools=[researcher.as_tool("ask")], pool=pool, priority=2, **of_the_parent)  # type: ignore[arg-type]


async def children_of(runs: AgentRuns, run_id: str) -> list[str]:
    return [step.run_id for step in await runs.steps(run_id) if isinstance(step, ChildStarted)]


async def test_a_parent_waits_for_its_children_without_a_place(
    runs: AgentRuns, fleet: Fleet, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    model.reply_to("plan", with_calls=[("ask", {"input": f"fact {number}?"}) for number in range(5)])
    for number in range(5):
        model.reply_to(f"fact {number}?", with_text=f"It is {number}.")
    model.reply_to("It is 4.", with_text="The plan.")
    # With one place, a parent that kept it would wait for ever.
    await start_runner(team(pool), max_runs=1)
    run_id = await runs.start("planner", "plan", queue=pool)
    result = await result_of(runs, run_id)
    assert result.text == "The plan."
    children = await children_of(runs, run_id)
    assert len(set(children)) == 5
    ended = [await runs.get(child) for child in children]
    assert all(each.order.parent is not None and each.order.parent.run_id == run_id for each in ended)
    own = [await fleet.get(step.job_id) for step in await runs.steps(run_id) if isinstance(step, ModelCalled)]
    used = sum(each.result.usage.total_tokens for each in own if each.result is not None)
    assert result.tokens == used + sum(each.result.tokens for each in ended if each.result is not None)
    # A child is never more urgent than its parent.
    (asked,) = [step for step in await runs.steps(children[0]) if isinstance(step, ModelCalled)]
    assert (await fleet.get(asked.job_id)).priority == 2


async def test_a_child_that_fails_is_a_result_that_the_model_reads(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    model.reply_to("plan", with_calls=[("ask", {"input": "secret?"}), ("ask", {"question": "none?"})])
    model.fail_with("invalid_request", prompt="secret?")
    model.reply_to("must be an object with one string", with_text="Then not.")
    await start_runner(team(pool))
    run_id = await runs.start("planner", "plan", queue=pool)
    assert (await result_of(runs, run_id)).text == "Then not."
    (child,) = await children_of(runs, run_id)
    assert (await runs.get(child)).state is RunState.FAILED


@dataclass(frozen=True)
class Digging:
    """A run whose child calls a tool that does not end."""

    runner: RunningRunner
    boss: Agent
    run_id: str
    child: str


@pytest.fixture
async def digging(runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str) -> Digging:
    began = asyncio.Event()

    @tool(timeout_s=1000, repeatable=True)
    async def dig() -> str:
        """Dig."""
        began.set()
        await asyncio.Event().wait()
        return ""

    digger = Agent(name="digger", tools=[dig], pool=pool)
    boss = Agent(name="boss", tools=[digger.as_tool()], pool=pool, limits=RunLimits(max_tokens=1000))
    model.reply_to("gold", with_calls=[("digger", {"input": "deep"})])
    model.reply_to("deep", with_calls=[("dig", {})])
    runner = await start_runner(boss)
    run_id = await runs.start("boss", "gold", queue=pool)
    await until(runs, run_id, RunState.WAITING)
    await began.wait()
    (child,) = await children_of(runs, run_id)
    return Digging(runner, boss, run_id, child)


async def test_limits_and_a_cancel_go_down_the_tree(runs: AgentRuns, digging: Digging, pool: str) -> None:
    order = (await runs.get(digging.child)).order
    assert order.max_tokens is not None
    assert 0 < order.max_tokens < 1000
    assert order.deadline_ms is not None
    await runs.cancel(digging.run_id)
    for each in (digging.run_id, digging.child):
        assert (await result_of(runs, each)).state is RunState.CANCELLED

    async def none_is_left() -> bool:
        return await runs.records.open(pool) == []

    await eventually(none_is_left)


@pytest.mark.parametrize(
    ("claims", "agent", "code"),
    [(5, "boss", RunFailureCode.RUNNER_LOST), (0, "gone", RunFailureCode.UNKNOWN_AGENT)],
)
async def test_a_run_that_cannot_go_on_cancels_its_children_and_counts_its_tokens(
    runs: AgentRuns, digging: Digging, store: aioredis.Redis, claims: int, agent: str, code: RunFailureCode
) -> None:
    order = (await runs.get(digging.run_id)).order.model_copy(update={"agent": agent})
    await store.hset(
        run_key(order.id), mapping={"state": "queued", "claims": claims, "order": order.model_dump_json()}
    )
    await runs.publish(order)
    result = await result_of(runs, order.id)
    assert result.error is not None
    assert (result.error.code, result.steps, result.tokens > 0) == (code, 1, True)
    assert (await result_of(runs, digging.child)).state is RunState.CANCELLED


async def test_a_parent_that_is_woken_publishes_no_child_again(
    runs: AgentRuns, digging: Digging, start_runner: StartRunner, pool: str, foreign: ForeignClient
) -> None:
    await digging.runner.stop()

    async def is_back() -> bool:
        return await foreign.waiting(run_queue(pool)) == 1

    # The message of the child, which its runner has handed over.
    await eventually(is_back)
    await foreign.channel.queue_purge(run_queue(pool))
    await runs.tell((await runs.get(digging.run_id)).order, "wake:1", "")
    # It acks the message of the run after that waits.
    runner = await start_runner(digging.boss, drain_timeout_s=PATIENCE_S)
    await until(runs, digging.run_id, RunState.WAITING)
    await runner.stop()
    assert (await foreign.channel.queue_purge(run_queue(pool))).message_count == 0
    assert (await runs.get(digging.child)).state is RunState.QUEUED
