"""Agent frameworks of others on the queue, as docs/how-to/use-agent-frameworks.md shows them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.integration.conftest import PATIENCE_S, StartWorker
from tests.integration.test_other_clients import INSTALLED, MISSING
from tests.pages import write_files_of

from inferfleet.local.services import Services
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.testing.workers import ScriptedAnswers

PROGRAMS = ["with_langgraph.py", "with_pydantic_ai.py", "with_openai_agents.py"]


async def test_an_agent_of_another_framework_calls_its_tool_and_answers(
    services: Services, start_worker: StartWorker, tmp_path: Path
) -> None:
    python = INSTALLED / "bin" / "python"
    if not python.exists():
        pytest.skip(MISSING)
    script = Script(tmp_path)
    model = ScriptedAnswers(script)
    model.reply_to("What does 4711 cost?", with_calls=[("price_of", {"article": "4711"})])
    model.reply_to("9.5", with_text="It costs 9.5.")
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script), pool="default")
    write_files_of("how-to/use-agent-frameworks.md", tmp_path)

    async def run(program: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(python, program),
            cwd=tmp_path,
            env={
                **os.environ,
                "INFERFLEET_AMQP_URL": services.amqp_url,
                "INFERFLEET_REDIS_URL": services.redis_url,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        return said.decode()

    said = await asyncio.gather(*map(run, PROGRAMS))
    assert dict(zip(PROGRAMS, said, strict=True)) == dict.fromkeys(PROGRAMS, "It costs 9.5.\n")
