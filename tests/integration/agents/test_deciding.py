"""Agents whose code decides in the model's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.integration.agents.conftest import StartRunner, result_of

from inferfleet.agents import Agent, AgentRuns, Decision, RunLimits, tool
from inferfleet.schemas.run import ModelAnswered, ModelCalled, RunFailureCode, RunState
from inferfleet.testing.workers import ScriptedAnswers

Messages = Sequence[Mapping[str, Any]]


@tool
def double(number: int) -> int:
    """Double a number."""
    return 2 * number


async def test_code_makes_the_calls_the_model_reads_their_results_and_code_ends_the_run(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    def decide(messages: Messages) -> Decision:
        match messages[-1]["role"]:
            case "user":
                assert messages[-1]["content"] == "Count."
                return [("double", {"number": 21}), ("no_such_tool", {})]
            case "tool" if messages[-1]["content"].startswith("error: there is no tool"):
                return [("double", {"number": 4})]
            case _:
                return None

    model.reply_to("8", with_text="It is eight.")
    await start_runner(Agent(name="counter", decide=decide, tools=[double], pool=pool))
    run_id = await runs.start("counter", "Count.", queue=pool)
    result = await result_of(runs, run_id)
    assert (result.state, result.text, result.steps) == (RunState.SUCCEEDED, "It is eight.", 3)
    steps = await runs.steps(run_id)
    assert len([step for step in steps if isinstance(step, ModelCalled)]) == 1
    assert [step.tokens > 0 for step in steps if isinstance(step, ModelAnswered)] == [False, False, True]


async def test_a_run_needs_no_model(runs: AgentRuns, start_runner: StartRunner, pool: str) -> None:
    await start_runner(Agent(name="echo", decide=lambda messages: f"You said {messages[-1]['content']}"))
    result = await result_of(runs, await runs.start("echo", "hello", queue=pool))
    assert (result.text, result.steps, result.tokens) == ("You said hello", 1, 0)


def raises(_: Messages) -> Decision:
    raise KeyError("what")


@pytest.mark.parametrize(
    ("decide", "code", "message"),
    [
        (raises, RunFailureCode.INTERNAL, "decide of agent broken raised KeyError: 'what'"),
        (lambda _: [], RunFailureCode.INTERNAL, "it returned no tool calls"),
        (lambda _: [("double", {"number": object()})], RunFailureCode.INTERNAL, "raised Pydantic"),
        (lambda _: 7, RunFailureCode.INTERNAL, "raised TypeError"),
        (lambda _: [("double", {"number": 1})], RunFailureCode.MAX_STEPS, "called 2 times"),
    ],
)
async def test_code_that_is_wrong_fails_its_run_and_says_why(
    runs: AgentRuns, start_runner: StartRunner, pool: str, decide: Any, code: RunFailureCode, message: str
) -> None:
    agent = Agent(name="broken", decide=decide, tools=[double], pool=pool, limits=RunLimits(max_steps=2))
    await start_runner(agent)
    result = await result_of(runs, await runs.start("broken", "go", queue=pool))
    assert result.error is not None
    assert result.error.code is code
    assert message in result.error.message
