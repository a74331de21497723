"""``inferfleet session`` and ``inferfleet chat``."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol

import pytest
from tests.integration.conftest import PATIENCE_S, RunCommand, StartWorker, eventually
from tests.integration.sessions.conftest import conversation, finished
from typer.testing import CliRunner, Result

from inferfleet.cli.session import app
from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas.errors import InvalidJobError, SessionError


class Prompt(Protocol):
    def __call__(self, *arguments: str, stdin: str = "") -> Awaitable[Result]: ...


@pytest.fixture
def at_prompt(environment: dict[str, str]) -> Prompt:
    """Run ``inferfleet session`` in this process: a new one for each command takes seconds."""

    async def run(*arguments: str, stdin: str = "") -> Result:
        runner = CliRunner(env=environment)
        return await asyncio.to_thread(lambda: runner.invoke(app, arguments, input=stdin))

    return run


async def test_a_session_is_shown_listed_forked_exported_imported_and_deleted(
    fleet: Fleet, session: Session, start_worker: StartWorker, at_prompt: Prompt, pool: str, tmp_path: Path
) -> None:
    await start_worker()
    await finished(fleet, *[await session.send(text, pool=pool) for text in ("a", "b")])
    await session.update_state({"k": 1}, version=0)
    copy, again, file = f"{session.id}-copy", f"{session.id}-again", tmp_path / "session.json"

    shown = await at_prompt("show", session.id)
    assert shown.stdout.splitlines()[::2] == ["user: a", "user: b"]
    assert 'state 1: {"k":1}' in shown.stderr
    as_json = json.loads((await at_prompt("show", session.id, "--json")).stdout)
    assert as_json["messages"] == conversation("a", "b")
    assert (as_json["turns"], as_json["state"]) == (2, {"k": 1})

    assert (await at_prompt("fork", session.id, copy, "--turns", "1")).stdout == f"{copy}\n"
    assert await fleet.session(copy).history() == conversation("a")
    listed = json.loads((await at_prompt("list", "--json")).stdout)
    assert {session.id: 2, copy: 1}.items() <= {record["id"]: record["turns"] for record in listed}.items()
    lines = (await at_prompt("list")).stdout.splitlines()
    (of_copy,) = [line for line in lines if line.startswith(f"{copy}  ")]
    assert re.fullmatch(r"\S+  [\d-]+ [\d:]+  1 turn  [\d,]+ bytes  0 unfinished", of_copy)

    assert (await at_prompt("export", session.id, str(file))).exit_code == 0
    piped = await at_prompt("export", session.id)
    assert piped.stdout == file.read_text()
    imported = await at_prompt("import", "--session", again, "--json", stdin=piped.stdout)
    assert json.loads(imported.stdout) == {"id": again}
    assert await fleet.session(again).turns() == await session.turns()
    assert "exists" in str((await at_prompt("import", str(file))).exception)

    assert (await at_prompt("delete", session.id)).exit_code == 0
    assert (await at_prompt("import", str(file))).stdout == f"{session.id}\n"
    assert isinstance((await at_prompt("delete", "never-used")).exception, SessionError)


async def test_a_part_of_a_message_that_is_no_text_is_named(
    fleet: Fleet, session: Session, start_worker: StartWorker, at_prompt: Prompt, pool: str
) -> None:
    await start_worker()
    await finished(fleet, await session.send("What is this?", pool=pool))
    document = json.loads((await at_prompt("export", session.id)).stdout)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    document["turns"][0]["messages"][0]["content"] = [{"type": "text", "text": "What is this?"}, image]
    copy = f"{session.id}-copy"
    await at_prompt("import", "--session", copy, stdin=json.dumps(document))

    shown = (await at_prompt("show", copy)).stdout

    assert shown.startswith("user: What is this?\n[image_url]\nassistant: ")


async def test_a_session_that_is_not_there_is_one_line_on_stderr(inferfleet: RunCommand) -> None:
    missing = await inferfleet("session", "show", "never-used")
    assert (missing.code, missing.out) == (1, "")
    assert (
        missing.err == "inferfleet: there is no session 'never-used': it was never used, or it has expired\n"
    )


@pytest.mark.parametrize(
    "document", ["", "{}", '{"format": "inferfleet.session.v9", "id": "x", "turns": []}']
)
async def test_a_document_of_another_format_is_refused(at_prompt: Prompt, document: str) -> None:
    ended = await at_prompt("import", stdin=document)
    assert isinstance(ended.exception, InvalidJobError)
    assert str(ended.exception).startswith("not a session export: ")


async def test_a_chat_through_a_pipe_prints_the_answers_and_keeps_the_session(
    fleet: Fleet, session: Session, start_worker: StartWorker, inferfleet: RunCommand, pool: str
) -> None:
    await start_worker()
    options = ("--pool", pool, "--system", "be brief", "--temperature", "0", "--priority", "urgent")
    chat = ("chat", "--session", session.id, *options)
    ended = await inferfleet(*chat, stdin="first\n\nsecond\n/exit\nnever\n")
    assert (ended.code, ended.err) == (0, "")
    ended_again = await inferfleet(*chat, stdin="third")
    history = await session.history()
    assert history == conversation(
        "first", "second", "third", after=[{"role": "system", "content": "be brief"}]
    )
    said = [message["content"] for message in history if message["role"] == "assistant"]
    assert ended.out == f"{said[0]}\n{said[1]}\n"
    assert ended_again.out == f"{said[2]}\n"


async def test_ctrl_c_stops_an_answer_and_then_leaves(
    fleet: Fleet, session: Session, start_worker: StartWorker, environment: dict[str, str], pool: str
) -> None:
    # Given a chat at a terminal, whose answer takes long
    await start_worker(engine_args={"decode_step_base_s": 0.05, "decode_step_per_sequence_s": 0.0})
    terminal, child = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "inferfleet.cli", "chat", "--session", session.id, "--pool", pool],
        env=environment | {"TERM": "dumb"},
        stdin=child,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(child)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            await process.stderr.readuntil(b"you> ")
            os.write(terminal, b"a long question\n")
            # When the user stops it in its midst
            assert await process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            # Then it says so, and asks again
            assert b"cancelled" in await process.stderr.readuntil(b"you> ")
            os.write(terminal, b"short\n")
            await eventually(lambda: _has_turns(session, 1))
            await process.stderr.readuntil(b"you> ")
            # And at the prompt Ctrl-C leaves.
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        os.close(terminal)
    assert await session.history() == conversation("short")


async def _has_turns(session: Session, count: int) -> bool:
    record = await session.get()
    return record is not None and record.turns == count
