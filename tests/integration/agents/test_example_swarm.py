"""The example swarm on a Redis with vector sets: its answer, its trace, and what dies meanwhile."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_trace_id
from tests.integration.agents.conftest import StartProcess, StartRunner, result_of
from tests.integration.conftest import StartWorker, eventually
from tests.integration.tracing.collector import Collector, collecting

from inferfleet.agents import AgentRuns
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.job import JobState
from inferfleet.schemas.run import ChildStarted, ModelCalled, RunResult, RunState, ToolEnded
from inferfleet.schemas.trace import trace_id

ROOT = Path(__file__).parents[3]
QUESTION = "What happens to a job when its worker dies?"
PAGES = ("docs/sessions.md", "docs/how-to/agents.md", "docs/how-to/retrieval.md")


@pytest.fixture
def services(services: Services, redis_8: str) -> Services:
    return replace(services, redis_url=redis_8)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@pytest.fixture
def swarm(monkeypatch: pytest.MonkeyPatch, pool: str) -> Iterator[ModuleType]:
    """The example, with the pool and the index of this test."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("SWARM_POOL", pool)
    monkeypatch.setenv("SWARM_INDEX", pool)
    yield import_module("swarm")
    del sys.modules["swarm"]


async def fill(fleet: Fleet, pool: str) -> None:
    """Make an index of some of this repository's pages."""
    index = fleet.index(pool)
    await index.create(pool=pool)
    await index.add({"id": page, "text": (ROOT / page).read_text()} for page in PAGES)


async def tree(runs: AgentRuns, run_id: str) -> AsyncIterator[str]:
    """A run, and all that it has started, at any depth."""
    yield run_id
    # Not ``runs.steps``: a child that is recorded may not have been started yet.
    for step in await runs.records.steps(run_id):
        if isinstance(step, ChildStarted):
            async for each in tree(runs, step.run_id):
                yield each


async def tree_of(runs: AgentRuns, run_id: str) -> list[str]:
    return [each async for each in tree(runs, run_id)]


async def jobs_of(runs: AgentRuns, run_id: str) -> list[str]:
    """The jobs of a tree of runs."""
    return [
        step.job_id
        for each in await tree_of(runs, run_id)
        for step in await runs.records.steps(each)
        if isinstance(step, ModelCalled)
    ]


async def test_the_swarm_answers_from_the_documents_and_is_one_trace(
    fleet: Fleet,
    runs: AgentRuns,
    start_worker: StartWorker,
    start_runner: StartRunner,
    swarm: ModuleType,
    provider: TracerProvider,
    spans: InMemorySpanExporter,
    pool: str,
) -> None:
    await start_worker()
    await fill(fleet, pool)
    spans.clear()
    await start_runner(swarm.swarm)
    with provider.get_tracer("a program").start_as_current_span("its work") as work:
        run_id = await runs.start("swarm", QUESTION, queue=pool)
    result = await result_of(runs, run_id)
    assert result.state is RunState.SUCCEEDED
    text, _, sources = result.text.rpartition(f"\n{swarm.SOURCES}")
    assert text
    assert {*sources.split(", ")} <= {*PAGES}

    ids = await tree_of(runs, run_id)
    orders = [(await runs.get(each)).order for each in ids]
    agents = {"swarm": 1, "planner": 1, "researcher": 3, "reader": 3, "writer": 1}
    assert Counter(order.agent for order in orders) == agents
    jobs = [await fleet.get(job_id) for job_id in await jobs_of(runs, run_id)]
    assert len(jobs) == 5
    assert result.tokens == sum(job.result.usage.total_tokens for job in jobs if job.result)

    made = spans.get_finished_spans()
    known = {span.context.span_id for span in made if span.context}
    (root,) = [span for span in made if span.parent is None]
    assert root.context == work.get_span_context()
    assert {span.parent.span_id for span in made if span.parent} <= known
    (trace,) = {format_trace_id(span.context.trace_id) for span in made if span.context}
    assert {trace_id(order.traceparent) for order in orders if order.traceparent} == {trace}
    # Five answers of models, and three questions that are embedded, each within its search.
    kinds = Counter(span.name.split()[0] for span in made)
    assert kinds == {"its": 1, "send": 8, "retrieval": 3}
    within = Counter(
        parent.name.split()[0]
        for span in made
        for parent in made
        if span.parent and parent.context and span.parent.span_id == parent.context.span_id
    )
    assert within == {"its": 8, "retrieval": 3}


async def test_a_killed_runner_and_a_killed_worker_change_neither_the_answer_nor_the_tree_of_spans(
    fleet: Fleet,
    runs: AgentRuns,
    start_worker: StartWorker,
    start_process: StartProcess,
    swarm: ModuleType,
    collector: Collector,
    pool: str,
) -> None:
    filling = await start_worker()
    await fill(fleet, pool)
    await filling.stop()
    env = {
        "INFERFLEET_AGENT_QUEUE": pool,
        "INFERFLEET_LEASE_S": "2",
        "INFERFLEET_SWEEP_INTERVAL_S": "1",
        "INFERFLEET_JOURNAL_FLUSH_S": "0.05",
        "INFERFLEET_HTTP_PORT": "0",
        "SWARM_POOL": pool,
        "SWARM_INDEX": pool,
        "INFERFLEET_TRACING": "true",
        **collector.environment,
    }
    worker = ["worker", "--pool", pool, "--engine", "simulated"]
    runner = ["agent", "run", "swarm:swarm"]
    # Answers take seconds, so that a worker can be killed within three of them.
    slow = {"INFERFLEET_ENGINE_ARGS": '{"decode_step_base_s": 0.06}'}
    folder = ROOT / "examples"
    killed = [start_process(each, folder=folder, **env, **slow) for each in (worker, runner)]
    run_id = await runs.start("swarm", QUESTION, queue=pool)

    async def readers_read() -> list[str]:
        some = await jobs_of(runs, run_id)
        # The first one was the planner's.
        records = (await fleet.get_many(some[1:])).values()
        return [it.id for it in records if it and it.state is JobState.RUNNING and it.tokens > 2]

    async def all_readers_read() -> bool:
        return len(await readers_read()) == 3

    async def planned() -> bool:
        return bool(collector.named("invoke_agent planner"))

    await eventually(all_readers_read)
    # What a process has not exported when it dies is lost.
    await eventually(planned)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
    interrupted = await readers_read()
    assert len(interrupted) == 3
    for each in (worker, runner):
        start_process(each, folder=folder, **env)
    result = await result_of(runs, run_id)

    records = await fleet.get_many(interrupted)
    assert all(it is not None and it.attempt > 1 for it in records.values()), "they were killed in the middle"
    for own in await tree_of(runs, run_id):
        calls = [step.call for step in await runs.steps(own) if isinstance(step, ToolEnded)]
        assert len(calls) == len({*calls})
    assert len(await jobs_of(runs, run_id)) == 5

    async def all_ended() -> bool:
        return len(collector.named("invoke_agent swarm")) == 1

    await eventually(all_ended)
    agents = {"swarm": 1, "planner": 1, "researcher": 3, "reader": 3, "writer": 1}
    spans = Counter(span.name for span in collector.spans)
    assert {agent: spans[f"invoke_agent {agent}"] for agent in agents} == agents
    (root,) = [span for span in collector.spans if not span.parent]
    assert (root.name, root.attributes["inferfleet.run.id"]) == ("invoke_agent swarm", run_id)
    collector.check_tree("")
    undisturbed = await result_of(runs, await runs.start("swarm", QUESTION, queue=pool))
    assert fields(result) == fields(undisturbed)


def fields(result: RunResult) -> tuple[RunState, str, int, int]:
    return result.state, result.text, result.steps, result.tokens


@pytest.mark.parametrize(
    ("plan", "questions"),
    [
        ("1. Who?\n2) Why?\n- How?\nWhen?", ["Who?", "Why?", "How?"]),
        ("Who?\nWho?\nbecause", ["Who?", "What? ", "What? How does it work?"]),
        ("", ["What?", "What? How does it work?", "What? What are its limits?"]),
        (
            "error: the agent planner failed",
            ["What?", "What? How does it work?", "What? What are its limits?"],
        ),
    ],
)
def test_whatever_the_planner_writes_there_are_three_questions(
    swarm: ModuleType, plan: str, questions: list[str]
) -> None:
    assert swarm.three_questions(plan, "What?") == [each.strip() for each in questions]
