"""How commands end that throw things away, are interrupted, or lose their reader."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    RunCommand,
    StartWorker,
    answer_to,
    chat,
    eventually,
    slow_chat,
    until_running,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import DeadLetterNotFoundError, DeadLettersGoneError, InvalidJobError
from inferfleet.schemas.job import new_job_id

INTERRUPTED = 130


class Start(Protocol):
    def __call__(self, *arguments: str, stdin: int = DEVNULL, stdout: int = PIPE) -> Awaitable[Process]: ...


@pytest.fixture
async def start(environment: dict[str, str]) -> AsyncIterator[Start]:
    """Start the command line as a process of its own, which the test need not end."""
    async with AsyncExitStack() as stack:

        async def started(*arguments: str, stdin: int = DEVNULL, stdout: int = PIPE) -> Process:
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "inferfleet.cli", *arguments],
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=PIPE,
            )
            stack.push_async_callback(process.communicate)
            stack.callback(lambda: process.returncode is None and process.kill())
            return process

        yield started


async def until_dead(fleet: Fleet, pool: str, count: int) -> list[Job]:
    body = chat(simulated={"fail": "engine_error"})
    jobs = [await fleet.submit(body, pool=pool, max_attempts=1) for _ in range(count)]
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    return jobs


async def ids_of_the_dead(fleet: Fleet, pool: str) -> list[str | None]:
    return [letter.message_id for letter in await fleet.dead_letters.read(pool)]


# Dead letters


async def test_without_ids_nothing_is_purged_and_nothing_replayed(
    inferfleet: RunCommand, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    jobs = await until_dead(fleet, pool, 2)
    for command in ("purge", "replay"):
        for arguments in ((), ("",), ("--all",), (jobs[0].id, ""), (jobs[0].id, "--all", "--yes")):
            ended = await inferfleet("dead", command, "--pool", pool, *arguments)
            assert (ended.code, ended.out) == (2, ""), arguments
    with pytest.raises(InvalidJobError, match="everything=True"):
        await fleet.dead_letters.purge(pool)
    with pytest.raises(InvalidJobError, match="everything=True"):
        await fleet.dead_letters.replay(pool)
    with pytest.raises(InvalidJobError, match="none of them empty"):
        await fleet.dead_letters.purge(pool, ids=[""])
    with pytest.raises(InvalidJobError, match="a collection of ids"):
        await fleet.dead_letters.purge(pool, ids=jobs[0].id)
    assert await fleet.dead_letters.purge(pool, ids=[]) == 0
    assert await fleet.dead_letters.replay(pool, ids=[]) == []
    assert await ids_of_the_dead(fleet, pool) == [job.id for job in jobs]


async def test_an_unknown_id_is_named_and_nothing_is_touched(
    inferfleet: RunCommand, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    (job,) = await until_dead(fleet, pool, 1)
    unknown = new_job_id()
    for command in ("purge", "replay", "show"):
        ids = (unknown,) if command == "show" else (job.id, unknown)
        ended = await inferfleet("dead", command, "--pool", pool, *ids)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith(f"inferfleet: pool {pool!r} has no dead letter {unknown!r}; `inferfleet")
    with pytest.raises(DeadLetterNotFoundError) as raised:
        await fleet.dead_letters.read(pool, ids=[unknown])
    assert raised.value.ids == (unknown,)
    assert await ids_of_the_dead(fleet, pool) == [job.id]


async def test_a_message_that_is_no_job_cannot_be_replayed_by_its_name(
    inferfleet: RunCommand, fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    (job,) = await until_dead(fleet, pool, 1)
    await foreign.publish(b"garbage", message_id="m-1")

    async def buried() -> bool:
        return len(await ids_of_the_dead(fleet, pool)) == 2

    await eventually(buried)
    (name,) = {*await ids_of_the_dead(fleet, pool)} - {job.id}
    assert name is not None
    ended = await inferfleet("dead", "replay", "--pool", pool, job.id, name)
    assert (ended.code, ended.out) == (2, "")
    assert f"{name!r}: not a job" in ended.err
    assert await ids_of_the_dead(fleet, pool) == [job.id, name]
    ended = await inferfleet("dead", "purge", "--pool", pool, name)
    assert (ended.code, ended.out) == (0, "1 purged\n")
    assert await ids_of_the_dead(fleet, pool) == [job.id]


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 2), (b"y\n", 0)])
async def test_all_are_purged_once_somebody_has_agreed_to_their_number(
    fleet: Fleet, start_worker: StartWorker, start: Start, pool: str, answer: bytes, left: int
) -> None:
    await start_worker()
    await until_dead(fleet, pool, 2)
    terminal, child = pty.openpty()
    try:
        process = await start("dead", "purge", "--all", "--pool", pool, stdin=child)
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            question = await process.stderr.readuntil(b"[y/N] ")
            assert f"delete for good: 2 dead letters of pool {pool}?" in question.decode()
            os.write(terminal, answer)
            code = await process.wait()
        assert (code == 0) is (left == 0)
    finally:
        os.close(child)
        os.close(terminal)
    assert len(await ids_of_the_dead(fleet, pool)) == left


@pytest.mark.parametrize("command", ["purge", "replay"])
async def test_only_those_are_taken_that_were_counted(
    fleet: Fleet, start_worker: StartWorker, start: Start, pool: str, command: str
) -> None:
    worker = await start_worker()
    await until_dead(fleet, pool, 2)
    terminal, child = pty.openpty()
    try:
        process = await start("dead", command, "--all", "--pool", pool, stdin=child)
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            assert b": 2 dead letters" in await process.stderr.readuntil(b"[y/N] ")
            late = await until_dead(fleet, pool, 2)
            # What is replayed stays, to be counted.
            await worker.stop()
            os.write(terminal, b"y\n")
            out, _ = await process.communicate()
    finally:
        os.close(child)
        os.close(terminal)
    assert process.returncode == 0
    assert await ids_of_the_dead(fleet, pool) == [job.id for job in late]
    if command == "purge":
        assert out == b"2 purged\n"
    else:
        again = await fleet.get_many(out.decode().split())
        assert [record is not None and record.state for record in again.values()] == [JobState.QUEUED] * 2


async def test_letters_that_somebody_else_took_are_not_made_up_for_by_others(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    jobs = await until_dead(fleet, pool, 2)
    for take in (fleet.dead_letters.purge, fleet.dead_letters.replay):
        with pytest.raises(DeadLettersGoneError, match="has 2 dead letters, and 3 were counted"):
            await take(pool, oldest=3)
        with pytest.raises(InvalidJobError, match="only one of these"):
            await take(pool, everything=True, oldest=2)
    assert await ids_of_the_dead(fleet, pool) == [job.id for job in jobs]
    assert await fleet.dead_letters.purge(pool, oldest=0) == 0
    assert await fleet.dead_letters.purge(pool, oldest=1) == 1
    assert await ids_of_the_dead(fleet, pool) == [jobs[1].id]


async def test_all_are_replayed_however_many_there_are(
    inferfleet: RunCommand, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    jobs = await until_dead(fleet, pool, 3)
    await worker.stop()
    ended = await inferfleet("dead", "replay", "--all", "--yes", "--pool", pool)
    assert ended.code == 0
    again = await fleet.get_many(ended.out.split())
    assert [record is not None and record.state for record in again.values()] == [JobState.QUEUED] * 3
    assert await ids_of_the_dead(fleet, pool) == []
    assert not set(again) & {job.id for job in jobs}


# Ctrl-C


def _goes_on(err: bytes) -> tuple[str, str]:
    """The job and the command that stderr names, which is all that it says."""
    found = re.fullmatch(
        r"inferfleet: job (\S+) (?:has not ended: continue with `inferfleet (.+) \1`"
        r"|may have been accepted: check with `inferfleet (get) \1`)\n",
        err.decode(),
    )
    assert found is not None, err.decode()
    return found[1], found[2] or found[3]


async def test_ctrl_c_on_a_submit_that_waits_names_the_job_that_goes_on(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, start: Start, pool: str
) -> None:
    process = await start("submit", "hello", "--pool", pool, "--wait")

    async def submitted() -> bool:
        return await foreign.waiting() == 1

    await eventually(submitted)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert (process.returncode, out) == (INTERRUPTED, b"")
    job_id, command = _goes_on(err)
    assert command in {"get --wait", "get"}
    await start_worker()
    assert (await fleet.wait(job_id, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


@pytest.mark.parametrize("command", ["submit", "stream", "get"])
async def test_ctrl_c_in_the_midst_of_an_answer_names_the_job_that_goes_on(
    fleet: Fleet,
    start_worker: StartWorker,
    start: Start,
    pool: str,
    command: str,
) -> None:
    await start_worker(engine_args={"decode_step_base_s": 0.02, "decode_step_per_sequence_s": 0.0})
    if command == "submit":
        process = await start("submit", "a long question", "--pool", pool, "--stream")
    else:
        # Longer than a busy machine takes to start the command.
        job = await fleet.submit(slow_chat(tokens=3000, step_s=0.02), pool=pool, stream=True)
        await until_running(fleet, job)
        process = await start(command, job.id, *(["--wait"] if command == "get" else []))
    assert process.stdout is not None
    if command == "get":
        # Nothing tells that it waits by now, but its record is there: any moment will do.
        await eventually(lambda: _is_waiting(process))
    else:
        assert await asyncio.wait_for(process.stdout.read(1), PATIENCE_S)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == INTERRUPTED
    if command == "get" and not err:
        # It came before the wait began.
        return
    job_id, goes_on = _goes_on(err)
    assert re.fullmatch("get --wait" if command == "get" else r"stream --after \d+-\d+:\d+(:\w+)?", goes_on)
    if command == "submit":
        assert (await fleet.wait(job_id, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    else:
        assert await fleet.cancel(job_id) is JobState.RUNNING


async def _is_waiting(process: Process) -> bool:
    """Whether the process has begun to talk to somebody."""
    try:
        links = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
    except FileNotFoundError:
        return False
    return sum(link.startswith("socket:") for link in links) >= 4


async def test_ctrl_c_ends_a_chat_through_a_pipe_and_names_its_session(
    fleet: Fleet, start_worker: StartWorker, start: Start, pool: str
) -> None:
    await start_worker(engine_args={"decode_step_base_s": 0.05, "decode_step_per_sequence_s": 0.0})
    process = await start("chat", "--session", f"s-{pool}", "--pool", pool, stdin=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"first\nsecond\n")
    assert await asyncio.wait_for(process.stdout.read(1), PATIENCE_S)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == INTERRUPTED
    assert f"continue with `inferfleet chat --session s-{pool}`" in err.decode()
    assert "Traceback" not in err.decode()


class AtPrompt:
    """``inferfleet chat`` at a terminal, whose answers stdout has."""

    def __init__(self, process: Process, terminal: int) -> None:
        self.process = process
        self._terminal = terminal

    async def prompted(self) -> None:
        """Wait for the next prompt."""
        assert self.process.stderr is not None
        await asyncio.wait_for(self.process.stderr.readuntil(b"you> "), PATIENCE_S)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    async def answering(self) -> None:
        """Wait until an answer has begun."""
        assert self.process.stdout is not None
        assert await asyncio.wait_for(self.process.stdout.read(1), PATIENCE_S)

    async def ended(self) -> int:
        await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def at_prompt(start: Start, start_worker: StartWorker, pool: str) -> AsyncIterator[AtPrompt]:
    await start_worker(engine_args={"decode_step_base_s": 0.05, "decode_step_per_sequence_s": 0.0})
    terminal, child = pty.openpty()
    try:
        arguments = ("--session", f"s-{pool}", "--pool", pool, "--max-tokens", "400")
        yield AtPrompt(await start("chat", *arguments, stdin=child), terminal)
    finally:
        os.close(child)
        os.close(terminal)


async def test_ctrl_c_at_the_prompt_of_a_chat_ends_it_as_interrupted(at_prompt: AtPrompt) -> None:
    await at_prompt.prompted()
    at_prompt.process.send_signal(signal.SIGINT)
    assert await at_prompt.ended() == INTERRUPTED


@pytest.mark.parametrize("leave", ["/exit\n", "\x04"])
async def test_ctrl_c_in_an_answer_of_a_chat_brings_the_prompt_back(
    at_prompt: AtPrompt, fleet: Fleet, pool: str, leave: str
) -> None:
    await at_prompt.prompted()
    at_prompt.type("first\n")
    await at_prompt.answering()
    at_prompt.process.send_signal(signal.SIGINT)
    await at_prompt.prompted()
    at_prompt.type(leave)
    assert await at_prompt.ended() == 0
    assert await fleet.session(f"s-{pool}").history() == []


# A reader that has gone


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("what", ["stream", "list", "get", "help"])
async def test_a_reader_that_has_gone_is_no_traceback(
    fleet: Fleet,
    start_worker: StartWorker,
    start: Start,
    environment: dict[str, str],
    pool: str,
    what: str,
    unbuffered: str,
) -> None:
    environment["PYTHONUNBUFFERED"] = unbuffered
    await start_worker()
    await until_dead(fleet, pool, 1)
    job = await fleet.submit("hello", pool=pool, stream=True)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    reading, writing = os.pipe()
    os.close(reading)
    arguments = {
        "stream": ("stream", job.id),
        "list": ("dead", "list", "--pool", pool),
        "get": ("get", job.id, "--json"),
        "help": ("--help",),
    }
    try:
        process = await start(*arguments[what], stdout=writing)
    finally:
        os.close(writing)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert (process.returncode, err) == (141, b"")


async def test_output_that_has_no_room_is_told_in_a_line(
    fleet: Fleet, start_worker: StartWorker, start: Start, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit("hello", pool=pool, stream=True)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    for arguments in (("stream", job.id), ("get", job.id, "--json"), ("--version",)):
        with Path("/dev/full").open("wb") as full:
            process = await start(*arguments, stdout=full.fileno())
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        told = "inferfleet: the output cannot be written: No space left on device\n"
        assert (process.returncode, err.decode().endswith(told), b"Traceback" in err) == (1, True, False)


async def test_no_locale_loses_an_answer_or_breaks_its_json(
    fleet: Fleet, start_worker: StartWorker, start: Start, environment: dict[str, str], pool: str
) -> None:
    environment["PYTHONIOENCODING"] = "latin-1"
    await start_worker()
    text = "naïve — \N{GRINNING FACE}"
    session = fleet.session(f"s-{pool}")
    job = await session.send(text, pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)

    async def printed(*arguments: str) -> str:
        process = await start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, b"Traceback" in err) == (0, False), err
        return out.decode("latin-1")

    exported = json.loads(await printed("session", "export", session.id))
    assert exported["turns"][0]["messages"][0]["content"] == text
    assert (await printed("session", "show", session.id)).startswith("user: naïve \\u2014 \\ud83d\\ude00\n")
    assert pool in await printed("top", "--once")
