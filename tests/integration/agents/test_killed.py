"""Runners and workers are killed at random moments: each run ends once, and no payment is made twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from tests.forked import ForkedProcess
from tests.integration.agents.conftest import StartProcess, result_of
from tests.integration.conftest import eventually

from inferfleet.agents import AgentRuns
from inferfleet.producer.background import background
from inferfleet.schemas.run import QuestionKind, RunState, ToolEnded, ToolStarted
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

clerk = Agent(name="clerk", tools=[pay, look], pool=os.environ["POOL"])
"""


def script(model: ScriptedAnswers) -> None:
    for number in range(RUNS):
        model.reply_to(
            f"task-{number}.",
            with_text="First look, then pay. ",
            with_calls=[("look", {"number": number, "page": 1}), ("pay", {"number": number})],
        )
        model.reply_to(f"paid-{number}.", with_calls=[("look", {"number": number, "page": 2})])
        model.reply_to(f"looked-{number}.2.", with_text=f"Bill {number} is paid.")


Start = Callable[[], ForkedProcess]


@pytest.fixture
def processes(start_process: StartProcess, tmp_path: Path, pool: str, queue: str) -> dict[str, Start]:
    """How to start a runner and a worker."""
    (tmp_path / "clerks.py").write_text(AGENTS)
    env = {
        "EFFECTS": str(tmp_path / "effects"),
        "POOL": pool,
        "INFERFLEET_AGENT_QUEUE": queue,
        "INFERFLEET_LEASE_S": "1",
        "INFERFLEET_HTTP_PORT": "0",
        "INFERFLEET_MAX_RUNS": "2",
        "INFERFLEET_SWEEP_INTERVAL_S": "1",
        "INFERFLEET_JOURNAL_FLUSH_S": "0.1",
        "INFERFLEET_ENGINE_ARGS": f'{{"script": "{tmp_path / "script"}"}}',
    }
    (tmp_path / "script").mkdir()
    commands = {
        "runner": ["agent", "run", "clerks:clerk"],
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


async def answer_questions(runs: AgentRuns, ids: list[str], folder: Path) -> None:
    """Answer as a person would who can look up whether a payment was made."""
    while True:
        for run_id in ids:
            for question in await runs.questions(run_id):
                assert (question.tool, question.kind) == ("pay", QuestionKind.UNKNOWN_OUTCOME)
                made = dict(effects(folder)).get(f"run:{run_id}:{question.call}")
                await runs.approve(run_id, question.id, result=made)
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_killed_anywhere_each_run_ends_as_if_nothing_had_happened(
    runs: AgentRuns, processes: dict[str, Start], tmp_path: Path, pool: str, seed: int
) -> None:
    chance = random.Random(seed)
    script(ScriptedAnswers(Script(tmp_path / "script")))
    living = {kind: [start(), start()] for kind, start in processes.items()}
    ids = [await runs.start("clerk", f"task-{number}.", queue=pool) for number in range(RUNS)]
    kills: list[str] = []

    async def kill_some() -> None:
        while len(kills) < KILLS:
            await eventually(more_effects(tmp_path, chance.randint(1, 3)))
            kind = chance.choice(["runner", "runner", "worker"])
            victim = living[kind].pop(chance.randrange(2))
            os.kill(victim.pid, signal.SIGKILL)
            living[kind].append(processes[kind]())
            kills.append(kind)

    async with background(kill_some(), answer_questions(runs, ids, tmp_path)):
        results = [await result_of(runs, run_id) for run_id in ids]

    assert len(kills) > 3
    assert [(result.state, result.text) for result in results] == [
        (RunState.SUCCEEDED, f"Bill {number} is paid.") for number in range(RUNS)
    ]
    made = Counter(effects(tmp_path))
    for number, run_id in enumerate(ids):
        steps = await runs.steps(run_id)
        assert sorted(step.call for step in steps if isinstance(step, ToolEnded)) == ["0.0", "0.1", "1.0"]
        started = Counter(step.call for step in steps if isinstance(step, ToolStarted))
        assert made.pop((f"run:{run_id}:0.1", f"paid-{number}.")) == 1
        for call, page in (("0.0", 1), ("1.0", 2)):
            assert 1 <= made.pop((f"run:{run_id}:{call}", f"looked-{number}.{page}.")) <= started[call]
    assert not made


def more_effects(folder: Path, count: int) -> Callable[[], Awaitable[bool]]:
    wanted = len(effects(folder)) + count

    async def there() -> bool:
        return len(effects(folder)) >= wanted

    return there
