"""Runners and workers are killed at random moments: each run ends once, and no payment is made twice.

``--agent-runs 200`` does it with more runs that have children and need approvals.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import orjson
import pytest
from tests.forked import ForkedProcess
from tests.integration.agents.conftest import StartProcess, result_of
from tests.integration.conftest import PATIENCE_S, eventually

from inferfleet.agents import AgentRuns, Question
from inferfleet.producer.background import background
from inferfleet.schemas.run import (
    ChildStarted,
    QuestionAsked,
    QuestionKind,
    RunState,
    ToolEnded,
    ToolStarted,
)
from inferfleet.testing.script import Script
from inferfleet.testing.workers import ScriptedAnswers

RUNS = 16
KILLS = 10

AGENTS = """
import asyncio, os
from inferfleet.agents import Agent, ToolContext, tool

async def effect(context, what):
    await asyncio.sleep(0.05)
    with open(os.environ["EFFECTS"], "a") as file:
        file.write(f"{context.idempotency_key} {what}\\n")
    await asyncio.sleep(0.05)
    return what

@tool
async def pay(context: ToolContext, number: int) -> str:
    '''Pay a bill.'''
    return await effect(context, f"paid-{number}.")

@tool(repeatable=True)
async def look(context: ToolContext, number: int, page: int) -> str:
    '''Look something up.'''
    return await effect(context, f"looked-{number}.{page}.")

@tool(needs_approval=True)
async def sign(context: ToolContext, number: int) -> str:
    '''Sign for an office.'''
    return await effect(context, f"signed-{number}.")

clerk = Agent(name="clerk", tools=[pay, look], pool=os.environ["POOL"])
boss = Agent(name="boss", tools=[clerk.as_tool(), sign], pool=os.environ["POOL"])
"""


def script(model: ScriptedAnswers, runs: int) -> None:
    """What a clerk does in so many runs: it looks twice, and pays once."""
    for number in range(runs):
        model.reply_to(
            f"task-{number}.",
            with_text="First look, then pay. ",
            with_calls=[("look", {"number": number, "page": 1}), ("pay", {"number": number})],
        )
        model.reply_to(f"paid-{number}.", with_calls=[("look", {"number": number, "page": 2})])
        model.reply_to(f"looked-{number}.2.", with_text=f"Bill {number} is paid.")


def script_offices(model: ScriptedAnswers, offices: int) -> None:
    """What a boss does for so many offices: two clerks pay a bill each, then somebody may sign or not."""
    for number in range(offices):
        first, second = bills(number)
        model.reply_to(
            f"office-{number}.",
            with_calls=[("clerk", {"input": f"task-{bill}."}) for bill in (first, second)],
        )
        model.reply_to(f"Bill {second} is paid.", with_calls=[("sign", {"number": number})])
        model.reply_to(f"signed-{number}.", with_text=f"Office {number} is done.")
        model.reply_to(f"unsigned-{number}.", with_text=f"Office {number} is refused.")


def bills(office: int) -> tuple[int, int]:
    return 2 * office, 2 * office + 1


def refused(office: int) -> bool:
    return office % 4 == 3


Start = Callable[[], ForkedProcess]


@pytest.fixture
def processes(start_process: StartProcess, tmp_path: Path, pool: str, queue: str) -> dict[str, Start]:
    """How to start a runner and a worker."""
    (tmp_path / "clerks.py").write_text(AGENTS)
    env = {
        "EFFECTS": str(tmp_path / "effects"),
        "POOL": pool,
        "INFERFLEET_AGENT_QUEUE": queue,
        "INFERFLEET_LEASE_S": "3",
        "INFERFLEET_HTTP_PORT": "0",
        "INFERFLEET_MAX_RUNS": "2",
        "INFERFLEET_SWEEP_INTERVAL_S": "1",
        "INFERFLEET_JOURNAL_FLUSH_S": "0.1",
        "INFERFLEET_ENGINE_ARGS": f'{{"script": "{tmp_path / "script"}"}}',
    }
    (tmp_path / "script").mkdir()
    commands = {
        "runner": ["agent", "run", "clerks:boss"],
        "worker": ["worker", "--pool", pool, "--engine", "scripted"],
    }
    return {
        kind: partial(start_process, command, folder=tmp_path, **env) for kind, command in commands.items()
    }


def effects(folder: Path) -> list[tuple[str, str]]:
    """The calls that had their effect: the key of each, and what it was."""
    file = folder / "effects"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(key, what) for key, _, what in (line.partition(" ") for line in lines)]


async def answer_questions(runs: AgentRuns, queue: str, folder: Path) -> None:
    """Answer as a person would who can look up whether a call had its effect."""
    while True:
        for run in await runs.list(queue):
            if run.state is RunState.WAITING:
                for question in await runs.questions(run.id):
                    await answer(runs, run.id, question, folder)
        await asyncio.sleep(0.1)


async def answer(runs: AgentRuns, run_id: str, question: Question, folder: Path) -> None:
    if question.kind is QuestionKind.UNKNOWN_OUTCOME:
        assert question.tool in {"pay", "sign"}
        made = dict(effects(folder)).get(f"run:{run_id}:{question.call}")
        await runs.approve(run_id, question.id, result=made)
        return
    assert question.tool == "sign"
    office = orjson.loads(question.arguments)["number"]
    if refused(office):
        await runs.deny(run_id, question.id, reason=f"unsigned-{office}.")
    else:
        await runs.approve(run_id, question.id)


class Killing:
    """Two runners and two workers, of which it kills some, and starts others in their place."""

    def __init__(self, processes: dict[str, Start], folder: Path, *, seed: int, times: int) -> None:
        self._processes = processes
        self._folder = folder
        self._chance = random.Random(seed)
        self._times = times
        self._living = {kind: [start(), start()] for kind, start in processes.items()}
        self.killed: list[str] = []

    async def run(self) -> None:
        """Kill a process whenever a few more calls had their effect."""
        while len(self.killed) < self._times:
            await eventually(more_effects(self._folder, self._chance.randint(1, 3)))
            kind = self._chance.choice(["runner", "runner", "worker"])
            victim = self._living[kind].pop(self._chance.randrange(2))
            os.kill(victim.pid, signal.SIGKILL)
            self._living[kind].append(self._processes[kind]())
            assert await victim.wait() == -signal.SIGKILL
            self.killed.append(kind)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_killed_anywhere_each_run_ends_as_if_nothing_had_happened(
    runs: AgentRuns, processes: dict[str, Start], tmp_path: Path, pool: str, seed: int
) -> None:
    script(ScriptedAnswers(Script(tmp_path / "script")), RUNS)
    killing = Killing(processes, tmp_path, seed=seed, times=KILLS)
    ids = [await runs.start("clerk", f"task-{number}.", queue=pool) for number in range(RUNS)]

    async with background(killing.run(), answer_questions(runs, pool, tmp_path)):
        results = [await result_of(runs, run_id) for run_id in ids]

    assert len(killing.killed) > 3
    assert [(result.state, result.text) for result in results] == [
        (RunState.SUCCEEDED, f"Bill {number} is paid.") for number in range(RUNS)
    ]
    made = Counter(effects(tmp_path))
    for number, run_id in enumerate(ids):
        await take_bill(runs, run_id, number, made)
    assert not made


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_killed_anywhere_children_and_approvals_end_as_if_nothing_had_happened(
    runs: AgentRuns,
    processes: dict[str, Start],
    tmp_path: Path,
    pool: str,
    seed: int,
    request: pytest.FixtureRequest,
) -> None:
    offices: int = request.config.getoption("--agent-runs")
    model = ScriptedAnswers(Script(tmp_path / "script"))
    script(model, 2 * offices)
    script_offices(model, offices)
    killing = Killing(processes, tmp_path, seed=seed, times=8 + offices)
    ids = [await runs.start("boss", f"office-{number}.", queue=pool) for number in range(offices)]
    # Many runs wait for one of four places.
    patience_s = PATIENCE_S * (1 + offices / 16)

    async with background(killing.run(), answer_questions(runs, pool, tmp_path)):
        results = [await runs.result(run_id, timeout_s=patience_s) for run_id in ids]

    assert len(killing.killed) > offices / 2
    assert [(result.state, result.text) for result in results] == [
        (RunState.SUCCEEDED, f"Office {number} is {'refused' if refused(number) else 'done'}.")
        for number in range(offices)
    ]
    made = Counter(effects(tmp_path))
    for number, run_id in enumerate(ids):
        steps = await runs.steps(run_id)
        children = {step.call: step.run_id for step in steps if isinstance(step, ChildStarted)}
        for bill, (_, child) in zip(bills(number), sorted(children.items()), strict=True):
            record = await runs.get(child)
            assert (record.order.input, record.state) == (f"task-{bill}.", RunState.SUCCEEDED)
            await take_bill(runs, child, bill, made)
        assert sorted(step.call for step in steps if isinstance(step, ToolEnded)) == ["0.0", "0.1", "1.0"]
        asked = Counter(step.question for step in steps if isinstance(step, QuestionAsked))
        assert asked[QuestionKind.APPROVAL] == 1
        assert made.pop((f"run:{run_id}:1.0", f"signed-{number}."), 0) == (0 if refused(number) else 1)
    assert not made


async def take_bill(runs: AgentRuns, run_id: str, number: int, made: Counter[tuple[str, str]]) -> None:
    """Check that a clerk's run has paid once, and take its effects from those that were ``made``."""
    steps = await runs.steps(run_id)
    assert sorted(step.call for step in steps if isinstance(step, ToolEnded)) == ["0.0", "0.1", "1.0"]
    started = Counter(step.call for step in steps if isinstance(step, ToolStarted))
    assert made.pop((f"run:{run_id}:0.1", f"paid-{number}.")) == 1
    for call, page in (("0.0", 1), ("1.0", 2)):
        assert 1 <= made.pop((f"run:{run_id}:{call}", f"looked-{number}.{page}.")) <= started[call]


def more_effects(folder: Path, count: int) -> Callable[[], Awaitable[bool]]:
    wanted = len(effects(folder)) + count

    async def there() -> bool:
        return len(effects(folder)) >= wanted

    return there
