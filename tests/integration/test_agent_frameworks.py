"""Agent frameworks of others on the queue, as docs/how-to/use-agent-frameworks.md shows them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import PATIENCE_S, StartWorker, eventually
from tests.integration.test_other_clients import INSTALLED, MISSING
from tests.pages import write_files_of

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.names import job_key
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.testing.workers import ScriptedAnswers

NO_JOB = "01890a5d-ac96-774b-bcce-b302099a8057"

PROGRAMS = ["with_langgraph.py", "with_pydantic_ai.py", "with_openai_agents.py"]


async def started(program: str, services: Services, folder: Path) -> asyncio.subprocess.Process:
    """Start a program of the page."""
    python = INSTALLED / "bin" / "python"
    if not python.exists():
        pytest.skip(MISSING)
    return await asyncio.create_subprocess_exec(
        *(python, program),
        cwd=folder,
        env={
            **os.environ,
            "INFERFLEET_AMQP_URL": services.amqp_url,
            "INFERFLEET_REDIS_URL": services.redis_url,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_an_agent_of_another_framework_calls_its_tool_and_answers(
    services: Services, start_worker: StartWorker, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    model = ScriptedAnswers(script)
    model.reply_to("What does 4711 cost?", with_calls=[("price_of", {"article": "4711"})])
    model.reply_to("9.5", with_text="It costs 9.5.")
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script), pool="default")
    write_files_of("how-to/use-agent-frameworks.md", tmp_path)

    async def run(program: str) -> str:
        process = await started(program, services, tmp_path)
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        return said.decode()

    said = await asyncio.gather(*map(run, PROGRAMS))
    assert dict(zip(PROGRAMS, said, strict=True)) == dict.fromkeys(PROGRAMS, "It costs 9.5.\n")


async def test_a_workflow_whose_process_is_killed_in_a_step_gets_the_job_of_that_step(
    services: Services, fleet: Fleet, store: aioredis.Redis, start_worker: StartWorker, tmp_path: Path
) -> None:
    async def jobs() -> set[str]:
        """The keys of all jobs' records."""
        keys: Any = await store.keys(job_key("*"))
        return {key.decode() for key in keys if len(key) == len(job_key(NO_JOB))}

    # Nobody answers yet, so the process is in its first step until it is killed.
    await fleet.declare_pool("default")
    before = await jobs()
    write_files_of("how-to/use-agent-frameworks.md", tmp_path)
    killed = await started("with_dbos.py", services, tmp_path)
    said = asyncio.ensure_future(killed.communicate())

    async def has_asked() -> bool:
        assert killed.returncode is None, await said
        return await fleet.find("report-17:1") is not None

    try:
        await eventually(has_asked)
    finally:
        killed.kill()
    output, _ = await asyncio.wait_for(said, PATIENCE_S)
    assert (killed.returncode, b"The report." in output) == (-signal.SIGKILL, False)
    first = await fleet.find("report-17:1")
    assert first is not None
    assert not first.state.terminal

    # Its job goes on without it.
    script = Script(tmp_path)
    model = ScriptedAnswers(script)
    model.reply_to("Name three facts about queues.", with_text="They have ends.")
    model.reply_to("They have ends.", with_text="The report.")
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script), pool="default")
    result = await fleet.wait(first.id, timeout_s=PATIENCE_S)
    assert result.text == "They have ends."

    recovered = await started("with_dbos.py", services, tmp_path)
    output, _ = await asyncio.wait_for(recovered.communicate(), PATIENCE_S)
    assert output.decode().splitlines()[-1] == "The report."
    second = await fleet.find("report-17:2")
    assert second is not None
    new = await jobs() - before
    assert new == {job_key(each) for each in (first.id, second.id)}
    assert (await fleet.get(first.id)).result == result
