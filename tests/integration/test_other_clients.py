"""Clients of OpenAI's API that others have written, unmodified. ``scripts/setup-clients`` installs them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import PATIENCE_S, StartGateway, StartWorker

from inferfleet.producer import Fleet
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.worker.ports import Generation

PROGRAMS = Path(__file__).parents[1] / "clients"
INSTALLED = Path(__file__).parents[2] / ".venv-clients"
MISSING = "not installed: scripts/setup-clients .venv-clients python3"


class CallsTools(ScriptedEngine):
    """Also calls the tool that a request wants."""

    async def generate(self, generation: Generation) -> AsyncGenerator[Any]:
        generate = self._others.generate if generation.body.get("tools") else super().generate
        async for event in generate(generation):
            yield event


@pytest.mark.parametrize("program", ["with_langchain.py", "with_pydantic_ai.py", "with_node.mjs"])
async def test_another_client_finds_all_that_it_looks_for(
    program: str,
    fleet: Fleet,
    start_gateway: StartGateway,
    start_worker: StartWorker,
    pool: str,
    tmp_path: Path,
) -> None:
    runner = _runner(program)
    script = Script(tmp_path)
    script.add(prompt="tower", text='{"city": "Paris", "height_m": 330}')
    await start_worker(CallsTools(model="scripted", max_running=8, script=script))
    gateway = await start_gateway(files_url=str(tmp_path / "files"))

    client = await asyncio.create_subprocess_exec(
        *(*runner, str(PROGRAMS / program), f"{gateway.url}/v1", pool),
        cwd=INSTALLED,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(client.communicate(), PATIENCE_S)

    assert client.returncode == 0, said.decode()


def _runner(program: str) -> list[str]:
    if program.endswith(".mjs"):
        node = shutil.which("node")
        if node is None:
            pytest.skip("there is no node here")
        if not (INSTALLED / "node_modules" / "openai").exists():
            pytest.skip(MISSING)
        return [node]
    python = INSTALLED / "bin" / "python"
    if not python.exists():
        pytest.skip(MISSING)
    return [str(python)]
