"""The span of a run: what is below it, and which runs have none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.agents.conftest import StartProcess, result_of
from tests.integration.conftest import eventually
from tests.integration.tracing.collector import Collector, ExportedSpan, collecting

from inferfleet.agents import AgentRuns, RunLimits
from inferfleet.producer import Fleet
from inferfleet.schemas.run import RunState
from inferfleet.schemas.trace import span_of_run

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

AGENTS = """
from inferfleet.agents import Agent, ToolContext, tool

POOL = "{pool}"

def ask_the_aide(messages):
    return [("aide", {{"input": "help"}})] if messages[-1]["role"] == "user" else None

def look_up(messages):
    if messages[-1]["role"] == "user":
        return [("look", {{}})]
    raise ValueError("no idea")

@tool(repeatable=True)
async def look(context: ToolContext) -> str:
    job = await context.fleet.submit("look", pool=POOL)
    return (await context.fleet.wait(job)).state

aide = Agent(name="aide", pool=POOL)
lead = Agent(name="lead", pool=POOL, tools=[aide.as_tool()], decide=ask_the_aide)
clerk = Agent(name="clerk", pool=POOL, tools=[look], decide=look_up)
"""


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@pytest.fixture
def start_fleet(start_process: StartProcess, collector: Collector, pool: str, tmp_path: Path) -> None:
    """A worker and a runner that trace."""
    (tmp_path / "crew.py").write_text(AGENTS.format(pool=pool))
    env = {**collector.environment, "INFERFLEET_TRACING": "true", "INFERFLEET_HTTP_PORT": "0"}
    start_process(["worker", "--pool", pool, "--engine", "simulated"], folder=tmp_path, **env)
    places = ["crew:lead", "crew:clerk"]
    start_process(["agent", "run", *places, "--queue", pool], folder=tmp_path, **env)


async def spans_of(collector: Collector, name: str, count: int = 1) -> list[ExportedSpan]:
    """Wait for spans with this beginning."""

    def found() -> list[ExportedSpan]:
        return [span for span in collector.spans if span.name.startswith(name)]

    async def are_there() -> bool:
        return len(found()) >= count

    await eventually(are_there)
    return found()


@pytest.mark.usefixtures("start_fleet")
@pytest.mark.parametrize("caller", [CALLER, ""])
async def test_a_run_is_a_span_with_its_jobs_and_the_runs_that_it_starts_below_it(
    runs: AgentRuns, collector: Collector, pool: str, caller: str
) -> None:
    limits = RunLimits.model_validate({"max_cost": 9, "prices": {"input": 1, "output": 1}})
    trace = f"00-{TRACE}-{caller}-01" if caller else None
    run_id = await runs.start("lead", "go", queue=pool, tenant="t", limits=limits, traceparent=trace)
    result = await result_of(runs, run_id)
    # The worker and the runner export them in any order.
    answers = await spans_of(collector, "chat", 2)
    (lead,) = await spans_of(collector, "invoke_agent lead")
    (aide,) = await spans_of(collector, "invoke_agent aide")
    assert (lead.parent, lead.id, lead.resource["service.name"]) == (
        caller,
        span_of_run(run_id),
        "inferfleet-runner",
    )
    assert result.cost is not None
    assert lead.attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "lead",
        "messaging.destination.name": f"inferfleet.agents.{pool}",
        "inferfleet.tenant": "t",
        "inferfleet.run.id": run_id,
        "inferfleet.run.state": "succeeded",
        "inferfleet.run.steps": result.steps,
        "inferfleet.run.tokens": result.tokens,
        "inferfleet.run.cost": float(result.cost),
    }
    assert lead.start <= aide.start <= aide.end <= lead.end
    assert {span.parent for span in answers} == {lead.id, aide.id}
    assert aide.parent == lead.id
    collector.check_tree(caller)


@pytest.mark.usefixtures("start_fleet")
async def test_a_run_that_fails_is_an_error_without_words_and_what_its_tools_submit_is_below_it(
    runs: AgentRuns, collector: Collector, pool: str
) -> None:
    result = await result_of(runs, await runs.start("clerk", "go", queue=pool))
    assert result.state is RunState.FAILED
    (answer,) = await spans_of(collector, "chat")
    (clerk,) = await spans_of(collector, "invoke_agent clerk")
    assert (clerk.failed, clerk.attributes["error.type"]) == (True, "internal")
    assert answer.parent == clerk.id
    assert b"no idea" not in b"".join(received.body for received in collector.receiver.received)
    collector.check_tree("")


@pytest.mark.usefixtures("start_fleet")
async def test_a_run_that_its_caller_does_not_sample_has_no_span_and_neither_has_what_it_starts(
    fleet: Fleet, runs: AgentRuns, collector: Collector, pool: str
) -> None:
    unsampled = await runs.start("lead", "go", queue=pool, traceparent=f"00-{TRACE}-{CALLER}-00")
    await result_of(runs, unsampled)
    await result_of(runs, await runs.start("lead", "go", queue=pool))
    await spans_of(collector, "invoke_agent lead")
    await spans_of(collector, "chat", 2)
    assert {span.trace for span in collector.spans}.isdisjoint({TRACE})
    assert span_of_run(unsampled) not in {span.id for span in collector.spans}
