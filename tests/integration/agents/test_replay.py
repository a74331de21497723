"""A run is replayed: with the same order, and with what it has done before a step."""

from __future__ import annotations

import pytest
from tests.integration.agents.conftest import StartRunner, only_question, result_of, until_asked
from tests.integration.conftest import RunCommand

from inferfleet.agents import Agent, AgentRuns, RunLimits, tool
from inferfleet.schemas.errors import IdempotencyConflictError, RunError, RunNotFoundError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.run import ChildStarted, RunReplay, RunState, Step, ToolEnded
from inferfleet.testing.workers import ScriptedAnswers


class Cook:
    """An agent that buys, cooks and lets its child wash up; and which calls were made."""

    def __init__(self, model: ScriptedAnswers, pool: str) -> None:
        self.made: list[str] = []
        model.reply_to("dinner", with_calls=[("buy", {"what": "eggs"}), ("buy", {"what": "milk"})])
        model.reply_to("bought", with_calls=[("washer", {"input": "wash"})])
        model.reply_to("wash", with_text="It is clean.")
        model.reply_to("It is clean.", with_calls=[("fry", {})])
        model.reply_to("fried", with_text="Dinner is ready.")

        @tool
        def buy(what: str) -> str:
            """Buy something."""
            self.made.append(f"buy {what}")
            return f"bought {what}"

        @tool(needs_approval=True)
        def fry() -> str:
            """Fry it."""
            self.made.append("fry")
            return "fried"

        washer = Agent(name="washer", pool=pool)
        self.agent = Agent(name="cook", tools=[buy, fry, washer.as_tool()], pool=pool)

    async def dinner(self, runs: AgentRuns, pool: str) -> str:
        run_id = await runs.start(
            "cook", "dinner", queue=pool, tenant="t", priority=7, limits=RunLimits(max_steps=9)
        )
        await self.finish(runs, run_id)
        return run_id

    async def finish(self, runs: AgentRuns, run_id: str) -> None:
        """Approve its frying, and wait for its end."""
        await until_asked(runs, run_id)
        await runs.approve(run_id, await only_question(runs, run_id))
        assert (await result_of(runs, run_id)).text == "Dinner is ready."


@pytest.fixture
def cook(model: ScriptedAnswers, pool: str) -> Cook:
    return Cook(model, pool)


async def test_a_run_is_replayed_with_the_same_order(
    runs: AgentRuns, start_runner: StartRunner, cook: Cook, pool: str
) -> None:
    await start_runner(cook.agent)
    first = await cook.dinner(runs, pool)
    again = await runs.replay(first, idempotency_key=pool)
    assert again == await runs.replay(first, idempotency_key=pool)
    await cook.finish(runs, again)
    assert sorted(cook.made) == sorted(2 * ["buy eggs", "buy milk", "fry"])
    old, new = (await runs.get(first)).order, (await runs.get(again)).order
    assert new.replay == RunReplay(run_id=first, from_step=1)
    for name in ("agent", "input", "queue", "tenant", "priority", "limits"):
        assert getattr(new, name) == getattr(old, name), name
    with pytest.raises(IdempotencyConflictError):
        await runs.replay(first, from_step=2, idempotency_key=pool)


def tools_ended(steps: list[Step]) -> list[ToolEnded]:
    """The ends of tool calls by call: those of one step end in any order."""
    return sorted((step for step in steps if isinstance(step, ToolEnded)), key=lambda step: step.call)


@pytest.mark.parametrize(
    ("from_step", "repeated"),
    [(1, {"buy eggs", "buy milk", "fry"}), (2, {"fry"}), (3, {"fry"}), (4, set[str]())],
)
async def test_what_comes_before_a_step_is_kept_and_not_done_again(
    runs: AgentRuns, start_runner: StartRunner, cook: Cook, pool: str, from_step: int, repeated: set[str]
) -> None:
    await start_runner(cook.agent)
    first = await cook.dinner(runs, pool)
    cook.made.clear()
    again = await runs.replay(first, from_step=from_step)
    if repeated:
        await cook.finish(runs, again)
    result = await result_of(runs, again)
    assert {*cook.made} == repeated
    assert (result.state, result.text, result.steps) == (RunState.SUCCEEDED, "Dinner is ready.", 4)
    assert result.tokens == (await result_of(runs, first)).tokens
    old, new = await runs.steps(first), await runs.steps(again)
    assert tools_ended(new) == tools_ended(old)
    children = {step.run_id for steps in (old, new) for step in steps if isinstance(step, ChildStarted)}
    assert len(children) == (2 if from_step <= 2 else 1)


async def test_only_a_step_that_is_there_with_all_results_before_it_is_replayed(
    runs: AgentRuns, start_runner: StartRunner, cook: Cook, pool: str
) -> None:
    await start_runner(cook.agent)
    run_id = await runs.start("cook", "dinner", queue=pool)
    await until_asked(runs, run_id)
    with pytest.raises(RunError, match=r"no result of fry \(2\.0\): name a step before 4"):
        await runs.replay(run_id, from_step=4)
    await cook.finish(runs, run_id)
    for step in (0, 5, 6):
        with pytest.raises(RunError, match=rf"has no step {step}: name one from 1 to 4"):
            await runs.replay(run_id, from_step=step)
    with pytest.raises(RunNotFoundError):
        await runs.replay(new_job_id())


async def test_a_child_is_replayed_without_its_parent(
    runs: AgentRuns, start_runner: StartRunner, cook: Cook, pool: str
) -> None:
    await start_runner(cook.agent)
    first = await cook.dinner(runs, pool)
    (child,) = [step.run_id for step in await runs.steps(first) if isinstance(step, ChildStarted)]
    again = await runs.replay(child)
    assert (await result_of(runs, again)).text == "It is clean."
    order = (await runs.get(again)).order
    assert (order.parent, order.max_tokens, order.deadline_ms) == (None, None, None)


async def test_a_run_that_has_failed_goes_on_as_another_one_from_the_command_line(
    runs: AgentRuns,
    start_runner: StartRunner,
    cook: Cook,
    model: ScriptedAnswers,
    pool: str,
    inferfleet: RunCommand,
) -> None:
    await start_runner(cook.agent)
    model.fail_with("invalid_request", prompt="It is clean.", times=1)
    failed = await runs.start("cook", "dinner", queue=pool)
    assert (await result_of(runs, failed)).state is RunState.FAILED
    started = await inferfleet("agent", "replay", failed, "--from-step", "3")
    assert started.code == 0, started.err
    await cook.finish(runs, started.out.strip())
    assert sorted(cook.made) == ["buy eggs", "buy milk", "fry"]
    refused = await inferfleet("agent", "replay", failed, "--from-step", "9")
    assert (refused.code, "has no step 9: name one from 1 to 3" in refused.err) == (1, True)
