"""A run from its start to its end: tools, limits, and orders that cannot be carried out."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Annotated, Any

import orjson
import pytest
from pydantic import Field
from tests.integration.agents.conftest import StartRunner, result_of, until_declared
from tests.integration.conftest import RunCommand, eventually

from inferfleet.agents import Agent, AgentRuns, Prices, RunLimits, ToolContext, tool
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import IdempotencyConflictError, InvalidJobError, RunNotFoundError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.prices import plain
from inferfleet.schemas.run import (
    ChildStarted,
    ModelAnswered,
    ModelCalled,
    RunFailureCode,
    RunOrder,
    RunState,
)
from inferfleet.testing.workers import ScriptedAnswers


@tool
async def weather(city: Annotated[str, Field(description="An English name.")], days: int = 1) -> str:
    """Say what the weather will be."""
    return f"{city}: {days} days of sun"


DEAR = {"input": 1000, "output": 1000}
FREE = {"input": 0, "output": 0}


def failure_of(result: object) -> object:
    error = getattr(result, "error", None)
    return None if error is None else error.code


async def test_a_model_calls_a_tool_and_answers(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    model.reply_to("Paris?", with_calls=[("weather", {"city": "Paris", "days": 3})])
    model.reply_to("Paris: 3 days of sun", with_text="Take sunglasses.")
    await start_runner(Agent(name="guide", instructions="Be brief.", tools=[weather], pool=pool))
    run_id = await runs.start("guide", "Paris?", queue=pool)
    result = await result_of(runs, run_id)
    assert (result.state, result.text, result.steps) == (RunState.SUCCEEDED, "Take sunglasses.", 2)
    assert [step.kind for step in await runs.steps(run_id)] == [
        "model_called",
        "model_answered",
        "tool_started",
        "tool_ended",
        "model_called",
        "model_answered",
    ]
    assert await runs.list(pool) == []


async def test_calls_of_one_answer_are_made_at_the_same_time(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    both = asyncio.Barrier(2)

    @tool
    async def meet(name: str) -> str:
        """Return once both calls are here."""
        await both.wait()
        return f"{name} is here"

    model.reply_to("meet", with_calls=[("meet", {"name": "Ann"}), ("meet", {"name": "Bob"})])
    model.reply_to("is here", with_text="Both.")
    await start_runner(Agent(name="host", tools=[meet], pool=pool))
    assert (await result_of(runs, await runs.start("host", "meet", queue=pool))).text == "Both."


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("weather", {"town": "Paris"}), "invalid arguments"),
        (("climate", {}), "there is no tool 'climate'; tools: weather, bad"),
        (("bad", {"how": "raise"}), "error: RuntimeError: broken\x1b[31m"),
        (("bad", {"how": "hang"}), "no result within 0.2 s"),
        (("bad", {"how": "exit"}), "SystemExit"),
        (("bad", {"how": "cancel"}), "CancelledError"),
        (("bad", {"how": "huge"}), "10,000,000 bytes, and at most 65,536 are allowed"),
        (("bad", {"how": "surrogate"}), "a?b"),
    ],
)
async def test_what_goes_wrong_in_a_tool_is_told_to_the_model(
    runs: AgentRuns,
    model: ScriptedAnswers,
    start_runner: StartRunner,
    pool: str,
    call: tuple[str, dict[str, str]],
    told: str,
) -> None:
    @tool(timeout_s=0.2)
    async def bad(how: str) -> str:
        """Do it badly."""
        match how:
            case "raise":
                raise RuntimeError("broken\x1b[31m")
            case "hang":
                await asyncio.Event().wait()
            case "exit":
                raise SystemExit
            case "cancel":
                raise asyncio.CancelledError
            case "surrogate":
                return "a\ud800b"
        return "x" * 10_000_000

    model.reply_to("go", with_calls=[call])
    model.reply_to(told, with_text="It was told.")
    await start_runner(Agent(name="tester", tools=[weather, bad], pool=pool))
    result = await result_of(runs, await runs.start("tester", "go", queue=pool))
    assert result.text == "It was told."


async def test_a_blocking_tool_runs_in_a_thread_and_knows_its_call(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    tries: list[str] = []

    @tool(retries=2)
    def flaky(context: ToolContext) -> dict[str, str]:
        """Succeed at the second try."""
        tries.append(context.idempotency_key)
        if len(tries) == 1:
            raise ConnectionError
        return {"run": context.run_id, "call": context.call}

    model.reply_to("go", with_calls=[("flaky", {})])
    model.reply_to('"call":"0.0"', with_text="Done.")
    await start_runner(Agent(name="tester", tools=[flaky], pool=pool))
    run_id = await runs.start("tester", "go", queue=pool)
    assert (await result_of(runs, run_id)).text == "Done."
    assert tries == [f"run:{run_id}:0.0"] * 2


@pytest.mark.parametrize(
    ("own", "asked", "code", "made"),
    [
        ({}, {"max_steps": 2}, RunFailureCode.MAX_STEPS, 2),
        ({}, {"max_tokens": 1}, RunFailureCode.MAX_TOKENS, 1),
        ({}, {"max_repeats": 2}, RunFailureCode.REPEATED_CALLS, 2),
        # Whoever starts a run cannot lift those of its agent.
        ({"max_tokens": 1}, {}, RunFailureCode.MAX_TOKENS, 1),
        ({"max_tokens": 1}, {"max_tokens": None}, RunFailureCode.MAX_TOKENS, 1),
        ({"max_tokens": 1}, {"max_tokens": 10**6}, RunFailureCode.MAX_TOKENS, 1),
        ({"max_steps": 35, "max_repeats": 99}, {"timeout_s": 3600}, RunFailureCode.MAX_STEPS, 35),
        ({}, {"max_cost": "0.000001", "prices": DEAR}, RunFailureCode.MAX_COST, 1),
        ({"max_cost": 1000, "prices": DEAR}, {"max_cost": "0.000001"}, RunFailureCode.MAX_COST, 1),
        (
            {"max_cost": "0.000001", "prices": DEAR},
            {"max_cost": 9, "prices": FREE},
            RunFailureCode.MAX_COST,
            1,
        ),
        ({}, {"max_cost": 1}, RunFailureCode.MAX_COST, 0),
    ],
)
async def test_a_run_ends_at_its_limits(
    runs: AgentRuns,
    model: ScriptedAnswers,
    start_runner: StartRunner,
    pool: str,
    own: dict[str, Any],
    asked: dict[str, Any],
    code: RunFailureCode,
    made: int,
) -> None:
    calls: list[int] = []

    @tool
    async def again() -> str:
        """Ask for more."""
        calls.append(1)
        return "again"

    model.reply_to("", with_calls=[("again", {})])
    await start_runner(Agent(name="tester", tools=[again], pool=pool, limits=RunLimits(**own)))
    result = await result_of(runs, await runs.start("tester", "go", queue=pool, limits=RunLimits(**asked)))
    assert (result.state, failure_of(result), len(calls)) == (RunState.FAILED, code, made)


async def test_a_run_says_what_its_tokens_and_those_of_its_children_have_cost(
    runs: AgentRuns,
    fleet: Fleet,
    model: ScriptedAnswers,
    start_runner: StartRunner,
    pool: str,
    inferfleet: RunCommand,
) -> None:
    prices = Prices(input=Decimal("1.5"), cached_input=Decimal("0.5"), output=Decimal(6))
    paid = asyncio.Event()

    @tool
    async def pay() -> str:
        """Pay."""
        await paid.wait()
        return "paid"

    # The child has prices of its own; its parent has those of whoever starts it.
    own = RunLimits.model_validate({"prices": {"input": 100, "output": 100}})
    clerk = Agent(name="clerk", tools=[pay], pool=pool, limits=own)
    helper = Agent(name="helper", pool=pool)
    boss = Agent(name="boss", tools=[clerk.as_tool(), helper.as_tool()], pool=pool)
    model.reply_to("go", with_calls=[("clerk", {"input": "pay it"}), ("helper", {"input": "help it"})])
    model.reply_to("pay it", with_calls=[("pay", {})])
    model.reply_to("help it", with_text="It helped.")
    model.reply_to("It helped.", with_text="Done.")
    await start_runner(boss)
    await until_declared(runs, pool)
    options = ("--max-cost", "0.75", "--input-price", "1.5", "--cached-input-price", "0.5")
    started = await inferfleet(
        "agent", "start", "boss", "go", "--queue", pool, *options, "--output-price", "6"
    )
    run_id = started.out.strip()
    assert started.code == 0, started.err

    async def is_known() -> bool:
        listed = orjson.loads((await inferfleet("agent", "list", "--queue", pool, "--json")).out)
        return any(each["id"] == run_id and each["cost"] is not None for each in listed)

    await eventually(is_known)
    assert " so far\n" in (await inferfleet("agent", "show", run_id)).out
    paid.set()
    result = await result_of(runs, run_id)
    assert (result.state, result.text) == (RunState.SUCCEEDED, "Done."), result.error

    async def cost_of(run_id: str, prices: Prices) -> Decimal:
        asked = [step.job_id for step in await runs.steps(run_id) if isinstance(step, ModelCalled)]
        jobs = await asyncio.gather(*map(fleet.get, asked))
        usages = [each.result.usage for each in jobs if each.result is not None]
        return sum(map(prices.cost_of, usages), Decimal())

    children = [step.run_id for step in await runs.steps(run_id) if isinstance(step, ChildStarted)]
    records = {record.order.agent: record for record in [await runs.get(child) for child in children]}
    left = records["clerk"].order.max_cost
    assert left is not None
    assert 0 < left < Decimal("0.75")
    assert own.prices is not None
    assert records["clerk"].cost == await cost_of(records["clerk"].order.id, own.prices)
    assert records["helper"].cost == await cost_of(records["helper"].order.id, prices)
    costs = [record.cost or Decimal() for record in records.values()]
    assert result.cost == await cost_of(run_id, prices) + sum(costs)
    assert f"tokens, cost {plain(result.cost)})" in (await inferfleet("agent", "show", run_id)).out


async def test_a_child_whose_parent_has_no_money_left_asks_no_model(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    helper = Agent(name="helper", pool=pool)
    limits = RunLimits.model_validate({"max_cost": "0.000001", "prices": DEAR})
    boss = Agent(name="boss", tools=[helper.as_tool()], pool=pool, limits=limits)
    model.reply_to("go", with_calls=[("helper", {"input": "help"})])
    await start_runner(boss)
    run_id = await runs.start("boss", "go", queue=pool)
    result = await result_of(runs, run_id)
    assert (failure_of(result), result.steps) == (RunFailureCode.MAX_COST, 1)
    (child,) = [step.run_id for step in await runs.steps(run_id) if isinstance(step, ChildStarted)]
    ended = (await runs.get(child)).result
    assert (failure_of(ended), ended and ended.steps) == (RunFailureCode.MAX_COST, 0)


async def test_a_final_answer_that_was_cut_off_is_marked(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    model.reply_to("go", with_text="one two three")
    await start_runner(Agent(name="tester", pool=pool, options={"max_tokens": 2}))
    result = await result_of(runs, await runs.start("tester", "go", queue=pool))
    assert (result.state, result.text.strip(), result.cut_off) == (RunState.SUCCEEDED, "one two", True)


async def test_a_call_that_was_cut_off_is_not_made(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    @tool
    async def delete(what: str = "everything") -> str:
        """Delete something."""
        raise AssertionError

    run_id = await runs.start("tester", "go", queue=pool)
    by: dict[str, Any] = {"fence": "mine", "lease_s": 60}
    await runs.records.claim(run_id, runner="r", **by)
    called = {"id": "1", "type": "function", "function": {"name": "delete", "arguments": ""}}
    answered = ModelAnswered(message={"content": None, "tool_calls": [called]}, tokens=1, cut_off=True)
    await runs.records.append(run_id, [answered], position=0, moved_on=True, **by)
    await runs.records.settle(run_id, RunState.QUEUED, fence="mine", told=0)
    model.reply_to("was cut off by its limit of tokens", with_text="It was told.")
    await start_runner(Agent(name="tester", tools=[delete], pool=pool))
    assert (await result_of(runs, run_id)).text == "It was told."


async def test_a_run_times_out_while_its_model_answers(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    model.reply_to("go", with_text="a b", hang_after_tokens=1)
    await start_runner(Agent(name="tester", pool=pool))
    run_id = await runs.start("tester", "go", queue=pool, limits=RunLimits(timeout_s=0.5))
    now_ms = runs.records.now_ms()
    times = {"created_ms": now_ms, "deadline_ms": now_ms + 500}
    child = RunOrder(id=new_job_id(), agent="tester", queue=pool, input="go", **times)
    await runs.submit(child)
    for each, limit in ((run_id, "timeout_s=0.5"), (child.id, "what its parent had left of its timeout_s")):
        error = (await result_of(runs, each)).error
        assert error is not None
        assert (error.code, error.message) == (
            RunFailureCode.TIMEOUT,
            f"the run has not ended within {limit}",
        )


async def test_a_model_that_fails_fails_the_run(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    model.fail_with("invalid_request", prompt="go")
    await start_runner(Agent(name="tester", pool=pool), Agent(name="lost", pool=f"{pool}-none"))
    failed = await result_of(runs, await runs.start("tester", "go", queue=pool))
    assert failure_of(failed) is RunFailureCode.MODEL_FAILED
    lost = await result_of(runs, await runs.start("lost", "go", queue=pool))
    assert lost.error is not None
    assert f"'{pool}-none'" in lost.error.message


async def test_an_agent_that_no_runner_knows_fails_the_run(
    runs: AgentRuns, start_runner: StartRunner, pool: str
) -> None:
    await start_runner(Agent(name="known", pool=pool))
    result = await result_of(runs, await runs.start("unknown", "go", queue=pool))
    assert result.error is not None
    assert result.error.code is RunFailureCode.UNKNOWN_AGENT
    assert "'unknown', only known" in result.error.message


async def test_an_idempotency_key_starts_one_run(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str
) -> None:
    model.reply_to("go", with_text="Gone.", times=1)
    await start_runner(Agent(name="tester", pool=pool))
    started = {await runs.start("tester", "go", queue=pool, idempotency_key=f"{pool}-1") for _ in range(3)}
    (run_id,) = started
    assert (await result_of(runs, run_id)).text == "Gone."
    with pytest.raises(IdempotencyConflictError, match="another order"):
        await runs.start("tester", "come", queue=pool, idempotency_key=f"{pool}-1")


async def test_what_is_no_run_is_refused(runs: AgentRuns, pool: str) -> None:
    with pytest.raises(InvalidJobError, match="agent"):
        await runs.start("no name", "go", queue=pool)
    for run_id in ("never", "01890a5d-ac96-774b-bcce-b302099a8057"):
        with pytest.raises(RunNotFoundError):
            await runs.get(run_id)
