"""What the tests of agents share: a worker whose answers are scripted, and runners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.forked import ForkedProcess
from tests.integration.conftest import PATIENCE_S, StartWorker, eventually

from inferfleet.agents import Agent, AgentRuns
from inferfleet.agents.runner import Runner
from inferfleet.agents.settings import RunnerSettings
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import UnknownPoolError
from inferfleet.schemas.run import RunResult, RunState
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.testing.workers import ScriptedAnswers

Calls = list[tuple[str, Mapping[str, Any]]]


@pytest.fixture
async def model(tmp_path: Path, start_worker: StartWorker) -> ScriptedAnswers:
    """A worker, and what its model answers."""
    folder = tmp_path / "script"
    folder.mkdir()
    script = Script(folder)
    await start_worker(ScriptedEngine(model="scripted", max_running=64, script=script))
    return ScriptedAnswers(script)


@pytest.fixture
def queue(pool: str) -> str:
    """A queue of runs that no other test uses."""
    return pool


@dataclass(frozen=True)
class RunningRunner:
    stopping: asyncio.Event
    task: asyncio.Task[None]

    async def stop(self) -> None:
        """Drain it, and wait for its end."""
        self.stopping.set()
        await asyncio.wait_for(asyncio.shield(self.task), PATIENCE_S)


class StartRunner(Protocol):
    def __call__(self, *agents: Agent, **settings: Any) -> Awaitable[RunningRunner]: ...


@pytest.fixture
async def start_runner(services: Services, queue: str) -> AsyncIterator[StartRunner]:
    """Start runners in this process. All end with the test."""
    started: list[RunningRunner] = []

    async def start(*agents: Agent, **changes: Any) -> RunningRunner:
        settings = RunnerSettings(
            **{
                "amqp_url": services.amqp_url,
                "redis_url": services.redis_url,
                "agent_queue": queue,
                "drain_timeout_s": 0,
                **changes,
            }
        )
        stopping = asyncio.Event()

        async def run() -> None:
            async with Fleet.connect(settings) as fleet:
                await Runner(fleet, agents, settings, stopping=stopping).run()

        runner = RunningRunner(stopping, asyncio.create_task(run()))
        started.append(runner)
        return runner

    yield start
    for runner in started:
        if not runner.task.done():
            await runner.stop()


class StartProcess(Protocol):
    def __call__(self, arguments: Sequence[str], *, folder: Path, **env: str) -> ForkedProcess: ...


@pytest.fixture
async def start_process(environment: dict[str, str], tmp_path: Path) -> AsyncIterator[StartProcess]:
    """Start commands of ours, which find modules in ``folder``. Their logs are in the folder of the test."""
    with (tmp_path / "log").open("wb") as log:
        async with AsyncExitStack() as stack:

            def start(arguments: Sequence[str], *, folder: Path, **env: str) -> ForkedProcess:
                preamble = f"import sys; sys.path.insert(0, {str(folder)!r})"
                process = ForkedProcess(
                    arguments, env=environment | env, stdout=log, stderr=log, preamble=preamble
                )
                stack.push_async_callback(ended, process)
                return process

            yield start


async def ended(process: ForkedProcess) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@pytest.fixture
def runs(fleet: Fleet) -> AgentRuns:
    return AgentRuns(fleet)


async def result_of(runs: AgentRuns, run_id: str) -> RunResult:
    return await runs.result(run_id, timeout_s=PATIENCE_S)


async def until_declared(runs: AgentRuns, queue: str) -> None:
    """Wait until a runner has declared the queue."""

    async def found() -> bool:
        try:
            await runs.require_queue(queue)
        except UnknownPoolError:
            return False
        return True

    await eventually(found)


async def until(runs: AgentRuns, run_id: str, state: RunState) -> None:
    async def reached() -> bool:
        return (await runs.get(run_id)).state is state

    await eventually(reached)


async def until_asked(runs: AgentRuns, run_id: str) -> None:
    async def asks() -> bool:
        return bool(await runs.questions(run_id))

    await eventually(asks)


async def only_question(runs: AgentRuns, run_id: str) -> str:
    """The id of the only question that a run asks."""
    (question,) = await runs.questions(run_id)
    return question.id
