"""What reaches a terminal of that which comes from outside: everything, and none of it is obeyed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Protocol

import pytest
import redis.asyncio as aioredis
from rich.console import Console
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    RunCommand,
    StartWorker,
    answer_to,
    eventually,
    slow_chat,
)

from inferfleet.local.demo.progress import Passage, Progress, UrgentStream
from inferfleet.local.demo.view import LivePicture, picture
from inferfleet.producer import Fleet
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.names import result_key
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import Completion, Generation

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\rover\x08\x7f[red]markup[/red]"
"""Sets a window's title, clears it, colours it, turns the direction of writing, overwrites; and markup."""

OBEYED = [*map(chr, [*range(9), *range(11, 32), *range(127, 160)]), "\u202e", "\u2066"]


class AtTerminal(Protocol):
    def __call__(self, *arguments: str, **variables: str) -> Awaitable[str]: ...


@pytest.fixture
async def at_terminal(environment: dict[str, str]) -> AsyncIterator[AtTerminal]:
    """Run a command whose stdout and stderr are a terminal, and return what came there."""
    async with AsyncExitStack() as stack:

        async def run(*arguments: str, **variables: str) -> str:
            terminal, child = pty.openpty()
            stack.callback(os.close, terminal)
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "inferfleet.cli", *arguments],
                env=environment | {"TERM": "dumb", "COLUMNS": "400"} | variables,
                stdin=DEVNULL,
                stdout=child,
                stderr=child,
            )
            os.close(child)
            shown = await asyncio.wait_for(asyncio.to_thread(_read_all, terminal), PATIENCE_S)
            await asyncio.wait_for(process.wait(), PATIENCE_S)
            # The terminal itself makes this of each end of a line.
            return shown.decode().replace("\r\n", "\n")

        yield run


def _read_all(terminal: int) -> bytes:
    content = b""
    while True:
        try:
            data = os.read(terminal, 65_536)
        except OSError:
            return content
        if not data:
            return content
        content += data


def assert_shown(shown: str) -> None:
    assert [each for each in OBEYED if each in shown] == []
    for spelt in ("\\u001b", "\\u009b", "\\u202e", "[red]markup[/red]", "gnp.exe"):
        assert spelt in shown


class Parrot(SimulatedEngine):
    """Says what it was asked to say."""

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        async for event in super().generate(generation):
            if isinstance(event, Completion):
                response = json.loads(json.dumps(event.response))
                response["choices"][0]["message"]["content"] = ESCAPES + "\nnext\tline"
                event = Completion(response=response, usage=event.usage)
            yield event


async def test_an_answer_is_shown_and_not_obeyed(
    at_terminal: AtTerminal,
    inferfleet: RunCommand,
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
) -> None:
    await start_worker(Parrot(model="parrot", max_running=4, engine_args={"speed": 0}))
    job = await fleet.submit("hello", pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    shown = await at_terminal("get", job.id)
    assert_shown(shown)
    assert "\nnext\tline\n" in shown
    # JSON stays JSON, at a terminal too; a pipe gets what was said.
    as_json = await at_terminal("get", job.id, "--json")
    assert [each for each in OBEYED if each in as_json] == []
    piped = await inferfleet("get", job.id)
    assert piped.out == ESCAPES + "\nnext\tline\n"
    result = await store.get(result_key(job.id))
    assert result is not None
    assert json.loads(as_json)["result"]["response"] == json.loads(result)["response"]


async def test_a_dead_letter_a_session_and_an_error_are_shown_and_not_obeyed(
    at_terminal: AtTerminal, fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    await foreign.publish(
        b"garbage",
        exchange="inferfleet.dead",
        message_id=ESCAPES + "\nforged",
        headers={"x-inferfleet-message": ESCAPES},
    )

    async def buried() -> bool:
        return len(await fleet.dead_letters.read(pool)) == 1

    await eventually(buried)
    shown = await at_terminal("dead", "list", "--pool", pool)
    assert_shown(shown)
    assert shown.count("\n") == 1
    assert_shown(await at_terminal("dead", "list", "--pool", pool, "--json"))

    # An id may hold anything but spaces and braces.
    session = fleet.session(f"s-{pool}-{ESCAPES}".replace("\r", ""))
    job = await session.send([{"role": "user", "content": ESCAPES}], pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    shown = await at_terminal("session", "list", "--limit", "100000")
    assert [each for each in OBEYED if each in shown] == []
    (line,) = [line for line in shown.splitlines() if line.startswith(f"s-{pool}-")]
    assert "\\u001b]0;owned" in line
    assert "[red]markup[/red]" in line
    assert_shown(await at_terminal("session", "show", session.id))

    failing = slow_chat(ESCAPES, tokens=1, step_s=0)
    refused = await fleet.submit({**failing, "model": ESCAPES}, pool=pool, metadata={"k": ESCAPES})
    await fleet.wait(refused, timeout_s=PATIENCE_S)
    shown = await at_terminal("get", refused.id)
    assert [each for each in OBEYED if each in shown] == []
    assert "failed" in shown


async def test_a_terminal_shows_how_many_of_several_jobs_have_ended(
    at_terminal: AtTerminal, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    jobs = await fleet.submit_many(["one", "two"], pool=pool)
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    command = ("get", jobs[0].id, jobs[1].id, "--wait")
    shown = await at_terminal(*command, TERM="xterm")
    assert [count for count in ("0/2", "1/2", "2/2") if count in shown] == ["0/2", "1/2", "2/2"]
    assert "\x1b[" in shown
    for job in jobs:
        assert answer_to(job) + "\n" in shown
        assert f"{job.id}: succeeded, attempt 1" in shown
    # Colours are one thing, and moving the cursor another.
    shown = await at_terminal(*command, TERM="xterm", NO_COLOR="1")
    assert "0/2" in shown
    assert not re.search(r"\x1b\[[\d;]+m", shown.replace("\x1b[0m", ""))
    for options, term in ((("--json",), "dumb"), ((), "dumb")):
        assert "/2" not in await at_terminal(*command, *options, TERM=term)


async def test_no_line_of_a_log_at_a_terminal_is_obeyed(environment: dict[str, str], pool: str) -> None:
    terminal, child = pty.openpty()
    noise = f"""
import inferfleet.worker.worker as worker
def stop(self, *arguments):
    worker.logger.warning("%s", {ESCAPES + "forged"!r}, extra={{"worker": {ESCAPES!r}}})
    raise worker.InferfleetError({ESCAPES!r})
worker.Worker._serve = stop
"""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", f"{noise}\nfrom inferfleet.cli import main\nmain()"],
        *["worker", "--pool", pool, "--engine", "simulated", "--http-port", "0"],
        env=environment | {"TERM": "dumb"},
        stderr=child,
    )
    os.close(child)
    try:
        shown = (await asyncio.wait_for(asyncio.to_thread(_read_all, terminal), PATIENCE_S)).decode()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 1
    finally:
        os.close(terminal)
    shown = shown.replace("\r\n", "\n")
    assert_shown(shown)
    assert shown.count("\\u001b]0;owned") == 3


def test_markup_and_escapes_in_an_answer_are_not_drawn_in_the_demo() -> None:
    for draw in ("picture", "say"):
        drawn = io.StringIO()
        console = Console(file=drawn, force_terminal=False, width=300)
        if draw == "picture":
            urgent = UrgentStream(passages=[Passage("a", text=ESCAPES)], first_token_s=1.0)
            console.print(picture(Progress(total=1, urgent=urgent)))
        else:
            LivePicture(console).say(ESCAPES)
        assert_shown(drawn.getvalue())
