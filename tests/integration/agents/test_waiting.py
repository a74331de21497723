"""Runs that wait for a person, and runs that are cancelled."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from tests.integration.agents.conftest import (
    StartRunner,
    only_question,
    result_of,
    until,
    until_asked,
    until_declared,
)
from tests.integration.conftest import ForeignClient, RunCommand, eventually

from inferfleet.agents import Agent, AgentRuns, RunLimits, Tool, tool
from inferfleet.agents.runner import prefetch_of
from inferfleet.agents.settings import RunnerSettings
from inferfleet.schemas.errors import RunError
from inferfleet.schemas.names import run_inbox_key, run_key, run_queue, run_steps_key
from inferfleet.schemas.run import Answer, QuestionKind, RunFailureCode, RunState, Verdict
from inferfleet.testing.workers import ScriptedAnswers


@pytest.fixture
def paid() -> list[int]:
    return []


@pytest.fixture
def pay(paid: list[int]) -> Tool:
    async def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return f"paid {amount}."

    return tool(pay, needs_approval=True)


@pytest.fixture
async def clerk(model: ScriptedAnswers, start_runner: StartRunner, pool: str, pay: Tool) -> Agent:
    model.reply_to("pay both", with_calls=[("pay", {"amount": 1}), ("pay", {"amount": 2})])
    model.reply_to("pay one", with_calls=[("pay", {"amount": 1})])
    model.reply_to("paid", with_text="It is paid.")
    model.reply_to("paid on Friday", with_text="Friday, then.")
    model.reply_to("pay twice", with_calls=[("pay", {"amount": 3})])
    model.reply_to("paid 3.", with_calls=[("pay", {"amount": 4})])
    model.reply_to("denied", with_text="It is not paid.")
    model.reply_to("too much", with_text="I see.")
    clerk = Agent(name="clerk", tools=[pay], pool=pool)
    await start_runner(clerk)
    return clerk


async def test_a_call_that_needs_approval_waits_for_it_and_holds_no_message(
    runs: AgentRuns, clerk: Agent, pool: str, paid: list[int], foreign: ForeignClient
) -> None:
    run_id = await runs.start(clerk.name, "pay both", queue=pool)
    await until(runs, run_id, RunState.WAITING)
    assert [(each.id, each.arguments, each.kind) for each in await runs.questions(run_id)] == [
        ("0.0:1", '{"amount": 1}', QuestionKind.APPROVAL),
        ("0.1:1", '{"amount": 2}', QuestionKind.APPROVAL),
    ]
    deleted = await foreign.channel.queue_delete(run_queue(pool))
    assert deleted.message_count == 0
    for not_asked in ("0.0", "0.0:2", ""):
        with pytest.raises(RunError, match=r"does not ask.*it asks 0\.0:1 \(pay\), 0\.1:1 \(pay\)"):
            await runs.approve(run_id, not_asked)
    assert paid == []
    await runs.deny(run_id, "0.1:1", reason="too much")
    await runs.approve(run_id, "0.0:1")
    assert (await result_of(runs, run_id)).text == "I see."
    assert paid == [1]
    assert await runs.questions(run_id) == []


async def test_an_answer_whose_giver_died_before_publishing_the_run_is_given_again(
    runs: AgentRuns, clerk: Agent, start_runner: StartRunner, pool: str, paid: list[int]
) -> None:
    await start_runner(clerk, sweep_interval_s=0.2)
    run_id = await runs.start(clerk.name, "pay both", queue=pool)
    await until(runs, run_id, RunState.WAITING)
    for question in await runs.questions(run_id):
        answer = Answer(verdict=Verdict.APPROVE)
        await runs.records.tell(run_id, f"answer:{question.id}", answer.model_dump_json())
    assert await runs.questions(run_id) == []
    await runs.approve(run_id, "0.0:1")
    assert (await result_of(runs, run_id)).text == "It is paid."
    assert sorted(paid) == [1, 2]


async def test_a_run_that_is_woken_too_early_is_woken_again(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str, pay: Tool, store: Redis
) -> None:
    model.reply_to("go", with_calls=[("pay", {"amount": 1})])
    await start_runner(Agent(name="clerk", tools=[pay], pool=pool), sweep_interval_s=0.2)
    run_id = await runs.start("clerk", "go", queue=pool)
    for times in (1, 2):
        await until(runs, run_id, RunState.WAITING)
        # As if its runner's clock had let it wait until the same time again.
        await store.hset(run_key(run_id), "wake_ms", 1)
        await runs.records.look_at(pool, run_id, at_ms=0)

        async def told(times: int = times) -> bool:
            return len(await runs.records.inbox(run_id)) == times

        await eventually(told)


async def test_a_person_may_give_the_result(
    runs: AgentRuns, clerk: Agent, pool: str, paid: list[int]
) -> None:
    run_id = await runs.start(clerk.name, "pay one", queue=pool)
    await until(runs, run_id, RunState.WAITING)
    await runs.approve(run_id, "0.0:1", result="paid on Friday")
    assert (await result_of(runs, run_id)).text == "Friday, then."
    assert paid == []


async def test_an_answer_that_comes_while_another_call_is_made_is_not_forgotten(
    runs: AgentRuns,
    model: ScriptedAnswers,
    start_runner: StartRunner,
    pool: str,
    pay: Tool,
    store: Redis,
) -> None:
    enough = asyncio.Event()

    @tool(timeout_s=1000)
    async def search() -> str:
        """Search."""
        await enough.wait()
        return "found"

    model.reply_to("go", with_calls=[("search", {}), ("pay", {"amount": 1})])
    model.reply_to("paid", with_text="It is paid.")
    await start_runner(Agent(name="clerk", tools=[pay, search], pool=pool), lease_s=1)
    run_id = await runs.start("clerk", "go", queue=pool)

    async def asked() -> bool:
        return bool(await runs.questions(run_id))

    await eventually(asked)
    await runs.approve(run_id, await only_question(runs, run_id))
    # The runner has renewed its lease, and so learnt that the run was told something.
    seen = {await store.hget(run_key(run_id), "lease_until")}

    async def renewed() -> bool:
        seen.add(await store.hget(run_key(run_id), "lease_until"))
        return len(seen) > 3

    await eventually(renewed)
    enough.set()
    assert (await result_of(runs, run_id)).text == "It is paid."


async def test_an_approval_that_nobody_gives_is_denied_in_time(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    @tool(needs_approval=True, approval_timeout_s=0.3)
    async def launch() -> str:
        """Launch."""
        raise AssertionError

    model.reply_to("go", with_calls=[("launch", {})])
    model.reply_to("nobody has answered in time", with_text="Too late.")
    await start_runner(Agent(name="pilot", tools=[launch], pool=pool), sweep_interval_s=0.2)
    run_id = await runs.start("pilot", "go", queue=pool)
    assert (await result_of(runs, run_id)).text == "Too late."


async def test_a_run_that_waits_times_out(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str, pay: Tool
) -> None:
    model.reply_to("go", with_calls=[("pay", {"amount": 1})])
    await start_runner(Agent(name="clerk", tools=[pay], pool=pool), sweep_interval_s=0.2)
    run_id = await runs.start("clerk", "go", queue=pool, limits=RunLimits(timeout_s=1))
    error = (await result_of(runs, run_id)).error
    assert error is not None
    assert error.code is RunFailureCode.TIMEOUT


async def test_a_waiting_run_is_cancelled(runs: AgentRuns, clerk: Agent, pool: str) -> None:
    run_id = await runs.start(clerk.name, "pay one", queue=pool)
    await until(runs, run_id, RunState.WAITING)
    await runs.cancel(run_id)
    assert (await result_of(runs, run_id)).state is RunState.CANCELLED
    assert await runs.cancel(run_id) is RunState.CANCELLED
    with pytest.raises(RunError, match="asks nothing"):
        await runs.approve(run_id, "0.0:1")


async def test_a_running_tool_and_the_job_of_the_model_are_cancelled(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    began, stopped = asyncio.Event(), asyncio.Event()

    @tool(timeout_s=1000)
    async def wait() -> str:
        """Wait."""
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    model.reply_to("tool", with_calls=[("wait", {})])
    model.reply_to("model", with_text="a b", hang_after_tokens=1)
    await start_runner(Agent(name="tester", tools=[wait], pool=pool))
    in_tool = await runs.start("tester", "tool", queue=pool)
    in_model = await runs.start("tester", "model", queue=pool)
    await began.wait()
    await runs.cancel(in_tool)
    assert (await result_of(runs, in_tool)).state is RunState.CANCELLED
    assert stopped.is_set()

    async def asked() -> bool:
        return bool(await runs.steps(in_model))

    await eventually(asked)
    await runs.cancel(in_model)
    assert (await result_of(runs, in_model)).state is RunState.CANCELLED


@pytest.mark.usefixtures("real_redis")
async def test_many_runs_wait_for_little_memory_and_nothing_else(
    runs: AgentRuns, clerk: Agent, pool: str, foreign: ForeignClient, store: Redis
) -> None:
    ids = [await runs.start(clerk.name, "pay one", queue=pool) for _ in range(50)]

    async def all_wait() -> bool:
        return {run.state for run in await runs.list(pool)} == {RunState.WAITING}

    await eventually(all_wait)
    keys = [key(run_id) for run_id in ids for key in (run_key, run_steps_key, run_inbox_key)]
    used = [await store.memory_usage(key, samples=0) or 0 for key in keys]
    assert sum(used) / len(ids) < 3000
    assert await foreign.waiting(run_queue(pool)) == await foreign.waiting() == 0
    # More than the runner may have messages of, so these do not hold theirs.
    assert len(ids) > prefetch_of(RunnerSettings())
    await runs.approve(ids[-1], "0.0:1")
    assert (await result_of(runs, ids[-1])).text == "It is paid."


async def test_the_command_line_starts_shows_and_answers_a_run(
    runs: AgentRuns, clerk: Agent, pool: str, inferfleet: RunCommand
) -> None:
    await until_declared(runs, pool)
    started = await inferfleet("agent", "start", clerk.name, "pay one", "--queue", pool)
    run_id = started.out.strip()
    await until(runs, run_id, RunState.WAITING)
    listed = await inferfleet("agent", "list", "--queue", pool)
    assert listed.out.startswith(f"{run_id}  waiting (person)  clerk")
    shown = await inferfleet("agent", "show", run_id)
    assert 'question 0.0:1 (approval): pay({"amount": 1})' in shown.out
    approved = await inferfleet("agent", "approve", run_id)
    assert approved.out == "0.0:1\n"
    assert (await result_of(runs, run_id)).text == "It is paid."
    assert "succeeded: It is paid.  (2 steps," in (await inferfleet("agent", "show", run_id)).out
    denied = await inferfleet("agent", "deny", run_id)
    assert (denied.code, "asks nothing" in denied.err) == (1, True)

    again = await runs.start(clerk.name, "pay twice", queue=pool)
    await until_asked(runs, again)
    assert (await inferfleet("agent", "approve", again)).code == 0

    async def asks_again() -> bool:
        return [each.id for each in await runs.questions(again)] == ["1.0:1"]

    await eventually(asks_again)
    # Repeated because its answer was lost, for example.
    ambiguous = await inferfleet("agent", "approve", again)
    assert (ambiguous.code, "now 1.0:1 (pay): name it with --question" in ambiguous.err) == (1, True)
    assert (await inferfleet("agent", "deny", again, "--question", "1.0:1")).out == "1.0:1\n"

    waiting = asyncio.ensure_future(
        inferfleet("agent", "start", clerk.name, "pay one", "--queue", pool, "--wait")
    )

    async def asks() -> bool:
        return any(each.state is RunState.WAITING for each in await runs.list(pool))

    await eventually(asks)
    (found,) = await runs.list(pool)
    assert (await inferfleet("agent", "cancel", found.id)).out.startswith(found.id)
    ended = await waiting
    assert (ended.code, "cancelled: cancelled: the run was cancelled" in ended.err) == (1, True)
