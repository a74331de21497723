"""The example agent, run as a user would."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.conftest import PATIENCE_S, StartWorker

from inferfleet.producer import Fleet

AGENT = Path(__file__).parents[2] / "examples" / "agent.py"


@pytest.fixture(scope="module")
def agent() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_agent", AGENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_agent_calls_its_tools_and_goes_on_when_it_is_started_again(
    fleet: Fleet, environment: dict[str, str], start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    session = fleet.session(f"s-{uuid4()}")
    command = [sys.executable, str(AGENT), "--session", session.id, "--pool", pool, "What time is it?"]

    async def run(*options: str) -> list[str]:
        process = await asyncio.create_subprocess_exec(
            *command,
            *options,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, err) == (0, b"")
        return out.decode().splitlines()

    lines = await run("--force", "clock", "calculator")
    assert lines[0].startswith("clock({}) = 20")
    assert lines[1].startswith("calculator({}) = error: TypeError")
    history = await session.history()
    assert [message["role"] for message in history] == ["user", *["assistant", "tool"] * 2, "assistant"]
    assert lines[2:] == history[-1]["content"].splitlines()
    assert await session.state() == (2, {"last_tool": "calculator"})
    assert await run() == (await session.history())[-1]["content"].splitlines()
    assert len(await session.turns()) == 4


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ('{"expression": "6 * (3 + 4) - -2 % 5"}', "39"),
        ('{"expression": "1/4"}', "0.25"),
        ('{"expression": "1/0"}', "error: ZeroDivisionError: division by zero"),
        ('{"expression": "__import__(\'os\')"}', "error: ValueError: only numbers"),
        ('{"expression": "9**9**9"}', "error: ValueError: only numbers"),
        ("{", "error: JSONDecodeError"),
    ],
)
def test_the_calculator_does_arithmetic_and_nothing_else(agent: Any, arguments: str, answer: str) -> None:
    assert agent.call({"name": "calculator", "arguments": arguments}).startswith(answer)


def test_the_clock_knows_time_zones(agent: Any) -> None:
    assert agent.call({"name": "clock", "arguments": '{"timezone": "Asia/Tokyo"}'}).endswith("+09:00")
    assert agent.call({"name": "clock", "arguments": '{"timezone": "Nowhere/Land"}'}).startswith("error:")
    assert agent.call({"name": "shell", "arguments": "{}"}).startswith("error: KeyError")
