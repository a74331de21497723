"""Runners: what they take over, what they hand over, and what each of their settings does."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as aioredis
from tests.integration.agents.conftest import StartRunner, only_question, result_of, until
from tests.integration.conftest import ForeignClient, eventually

from inferfleet.agents import Agent, AgentRuns, RunLimits, tool
from inferfleet.agents.runner import Runner
from inferfleet.agents.settings import RunnerSettings
from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import ConfigurationError, RunError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import run_key, run_queue
from inferfleet.schemas.run import (
    QuestionKind,
    RunFailureCode,
    RunOrder,
    RunParent,
    RunResult,
    RunState,
    ToolEnded,
)
from inferfleet.testing.workers import ScriptedAnswers


class Gate:
    """A tool that waits until it may go on, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.began = asyncio.Event()
        self.open = asyncio.Event()

    def agent(self, pool: str, **options: bool) -> Agent:
        async def gate() -> str:
            """Wait."""
            self.calls += 1
            self.began.set()
            await self.open.wait()
            return "passed"

        return Agent(name="guest", tools=[tool(gate, timeout_s=1000, **options)], pool=pool)


def script(model: ScriptedAnswers) -> None:
    model.reply_to("go", with_calls=[("gate", {})])
    model.reply_to("passed", with_text="Through.")


async def test_a_call_that_its_runner_gave_up_is_made_again_if_it_is_repeatable(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    script(model)
    gate = Gate()
    first = await start_runner(gate.agent(pool, repeatable=True))
    run_id = await runs.start("guest", "go", queue=pool)
    await gate.began.wait()
    await first.stop()
    gate.open.set()
    await start_runner(gate.agent(pool, repeatable=True))
    assert (await result_of(runs, run_id)).text == "Through."
    assert gate.calls == 2


async def test_a_person_is_asked_about_any_other_call_that_its_runner_gave_up(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    script(model)
    gate = Gate()
    first = await start_runner(gate.agent(pool))
    run_id = await runs.start("guest", "go", queue=pool)
    await gate.began.wait()
    await first.stop()
    gate.open.set()
    await start_runner(gate.agent(pool))
    await until(runs, run_id, RunState.WAITING)
    (question,) = await runs.questions(run_id)
    assert (question.call, question.kind, gate.calls) == ("0.0", QuestionKind.UNKNOWN_OUTCOME, 1)
    await runs.approve(run_id, question.id)
    assert (await result_of(runs, run_id)).text == "Through."
    assert gate.calls == 2


async def test_an_answer_that_is_repeated_answers_no_later_question(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    script(model)
    gate = Gate()
    first = await start_runner(gate.agent(pool, needs_approval=True))
    run_id = await runs.start("guest", "go", queue=pool)
    await until(runs, run_id, RunState.WAITING)
    approved = await only_question(runs, run_id)
    await runs.approve(run_id, approved)
    await gate.began.wait()
    await first.stop()
    gate.open.set()
    await start_runner(gate.agent(pool, needs_approval=True))
    await until(runs, run_id, RunState.WAITING)
    unknown = await only_question(runs, run_id)
    await runs.approve(run_id, approved)
    with pytest.raises(RunError, match="got another answer: approve"):
        await runs.deny(run_id, approved)
    assert await only_question(runs, run_id) == unknown
    await runs.approve(run_id, unknown, result="passed")
    assert (await result_of(runs, run_id)).text == "Through."
    await runs.approve(run_id, unknown, result="passed")
    assert gate.calls == 1


async def test_a_drained_runner_waits_for_its_calls_and_hands_the_run_over(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    script(model)
    gate = Gate()
    first = await start_runner(gate.agent(pool), lease_s=1000, drain_timeout_s=1000)
    run_id = await runs.start("guest", "go", queue=pool)
    await gate.began.wait()
    stopping = asyncio.create_task(first.stop())
    await start_runner(gate.agent(pool))
    gate.open.set()
    await stopping
    # The lease is given back: nobody could wait for its end.
    assert (await result_of(runs, run_id)).text == "Through."
    assert gate.calls == 1


async def test_a_runner_that_has_lost_its_run_changes_nothing(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str, store: aioredis.Redis
) -> None:
    script(model)
    gate = Gate()
    await start_runner(gate.agent(pool))
    run_id = await runs.start("guest", "go", queue=pool)
    await gate.began.wait()
    await store.hset(run_key(run_id), mapping={"fence": "another", "lease_until": 0})
    gate.open.set()
    await start_runner(gate.agent(pool), sweep_interval_s=0.2)
    await until(runs, run_id, RunState.WAITING)
    (question,) = await runs.questions(run_id)
    assert question.kind is QuestionKind.UNKNOWN_OUTCOME


async def test_runs_whose_messages_are_lost_are_published_again(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str, foreign: ForeignClient
) -> None:
    model.reply_to("go", with_text="Gone.")
    run_id = await runs.start("tester", "go", queue=pool)
    await foreign.channel.queue_purge(run_queue(pool))
    # It was published just now, so nobody looks for it yet.
    await runs.records.look_at(pool, run_id, at_ms=0)
    await start_runner(Agent(name="tester", pool=pool), sweep_interval_s=0.2)
    assert (await result_of(runs, run_id)).text == "Gone."


async def test_a_record_that_cannot_be_read_does_not_end_the_sweep(
    runs: AgentRuns,
    model: ScriptedAnswers,
    start_runner: StartRunner,
    pool: str,
    store: aioredis.Redis,
    foreign: ForeignClient,
) -> None:
    model.reply_to("go", with_text="Gone.")
    parent = await runs.start("tester", "stay", queue=pool)
    child = RunOrder(
        id=new_job_id(),
        agent="tester",
        queue=pool,
        input="ended",
        parent=RunParent(run_id=parent, call="0.0"),
        created_ms=0,
    )
    await runs.submit(child)
    ended = RunResult(run_id=child.id, state=RunState.SUCCEEDED)
    await store.hset(
        run_key(child.id), mapping={"state": ended.state.value, "result": ended.model_dump_json()}
    )
    await store.hset(run_key(parent), "order", "{}")
    run_id = await runs.start("tester", "go", queue=pool)
    await foreign.channel.queue_purge(run_queue(pool))
    for at_ms, each in enumerate((child.id, run_id)):
        await runs.records.look_at(pool, each, at_ms=at_ms)
    await start_runner(Agent(name="tester", pool=pool), sweep_interval_s=0.2)
    assert (await result_of(runs, run_id)).text == "Gone."


async def test_a_runner_has_no_more_runs_than_it_may(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    script(model)
    gate = Gate()
    runner = await start_runner(gate.agent(pool), max_runs=2)
    ids = [await runs.start("guest", "go", queue=pool) for _ in range(5)]

    async def two_wait() -> bool:
        return gate.calls == 2

    await eventually(two_wait)
    states = [(await runs.get(run_id)).state for run_id in ids]
    assert sorted(states) == ["queued", "queued", "queued", "running", "running"]
    gate.open.set()
    for run_id in ids:
        assert (await result_of(runs, run_id)).text == "Through."
    assert not runner.task.done()


async def test_a_run_that_its_runners_do_not_survive_is_given_up(
    runs: AgentRuns, start_runner: StartRunner, pool: str, store: aioredis.Redis
) -> None:
    run_id = await runs.start("guest", "go", queue=pool)
    # As if five had died before they moved it on.
    await store.hset(
        run_key(run_id), mapping={"state": "running", "fence": "dead", "lease_until": 0, "claims": 5}
    )
    await start_runner(Gate().agent(pool))
    error = (await result_of(runs, run_id)).error
    assert error is not None
    assert error.code is RunFailureCode.RUNNER_LOST


async def test_an_agent_whose_runs_would_outlive_their_records_is_refused(fleet: Fleet) -> None:
    agent = Agent(name="slow", limits=RunLimits(timeout_s=3600))
    boss = Agent(name="boss", tools=[agent.as_tool()], limits=RunLimits(timeout_s=10))
    settings = RunnerSettings(queued_ttl_s=3599)
    with pytest.raises(ConfigurationError, match=r"agent slow: timeout_s=3600 .*QUEUED_TTL_S=3599"):
        Runner(fleet, [boss], settings, stopping=asyncio.Event())


async def test_a_runner_that_stops_without_rabbitmq_waits_for_its_calls(
    runs: AgentRuns,
    model: ScriptedAnswers,
    start_runner: StartRunner,
    pool: str,
    services: Services,
    caplog: pytest.LogCaptureFixture,
) -> None:
    script(model)
    gate = Gate()

    async def drains() -> bool:
        return "draining: waiting for 1 runs" in caplog.text

    caplog.set_level("INFO")
    async with Proxy(services.amqp_url) as link:
        runner = await start_runner(
            gate.agent(pool), amqp_url=link.url, connect_timeout_s=0.5, drain_timeout_s=1000
        )
        run_id = await runs.start("guest", "go", queue=pool)
        await gate.began.wait()
        link.hold(*Direction)
        link.reset()
        await link.until_held(Direction.TO_SERVICE)
        stopping = asyncio.create_task(runner.stop())
        await eventually(drains)
        gate.open.set()
        await stopping
    assert (await runs.steps(run_id))[-1] == ToolEnded(call="0.0", content="passed")
