"""Processes that are started with a standard stream closed, as some supervisors and scripts do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest
from tests.integration.conftest import PATIENCE_S, StartWorker, answer_to

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.job import new_job_id

ALL = (0, 1, 2)


class StartClosed(Protocol):
    def __call__(self, *arguments: str, closed: tuple[int, ...]) -> Awaitable[Process]: ...


@pytest.fixture
async def start_closed(environment: dict[str, str]) -> AsyncIterator[StartClosed]:
    """Start the command line with some of its streams closed."""
    async with AsyncExitStack() as stack:

        async def start(*arguments: str, closed: tuple[int, ...]) -> Process:
            process = await asyncio.create_subprocess_exec(
                *["sh", "-c", f'exec "$0" "$@" {" ".join(f"{fd}>&-" for fd in closed)}'],
                *[sys.executable, "-m", "inferfleet.cli", *arguments],
                env=environment,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
            )
            stack.push_async_callback(process.communicate)
            stack.callback(lambda: process.returncode is None and process.kill())
            return process

        yield start


async def ended(process: Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("closed", [(2,), ALL])
async def test_a_worker_without_a_stderr_works_and_ends_as_always(
    fleet: Fleet, start_closed: StartClosed, pool: str, closed: tuple[int, ...]
) -> None:
    arguments = ("--pool", pool, "--engine", "simulated", "--http-port", "0")
    process = await start_closed("worker", *arguments, closed=closed)
    job = await fleet.submit("hello", pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    # No connection has got the number of a closed stream: what a library prints would go there. It goes
    # into the log, by a pipe.
    streams = {fd: str(Path(f"/proc/{process.pid}/fd/{fd}").readlink()) for fd in closed}
    assert streams.pop(0, os.devnull) == os.devnull
    assert {stream.partition(":")[0] for stream in streams.values()} == {"pipe"}
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == (0, "", "")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), ALL])
async def test_commands_do_what_they_can_without_a_stream(
    fleet: Fleet, start_closed: StartClosed, start_worker: StartWorker, pool: str, closed: tuple[int, ...]
) -> None:
    await start_worker()
    job = await fleet.submit("hello", pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    code, out, err = await ended(await start_closed("get", job.id, closed=closed))
    assert (code, out) == (0, "" if 1 in closed else f"{answer_to(job)}\n")
    assert bool(err) == (2 not in closed)
    code, out, err = await ended(await start_closed("get", new_job_id(), closed=closed))
    assert (code, out, bool(err)) == (1, "", 2 not in closed)
    # Here stdin is read, if there is one.
    code, out, err = await ended(await start_closed("dead", "purge", "--all", "--pool", pool, closed=closed))
    assert (code, out, bool(err)) == (2, "", 2 not in closed)
    chat = await start_closed("chat", "--session", f"s-{pool}", "--pool", pool, closed=closed)
    assert await ended(chat) == (0, "", "")


async def test_a_submit_without_any_stream_is_accepted(
    fleet: Fleet, start_closed: StartClosed, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    key = f"key-{pool}"
    arguments = ("submit", "hello", "--pool", pool, "--idempotency-key", key, "--wait")
    assert await ended(await start_closed(*arguments, closed=ALL)) == (0, "", "")
    known: Job = await fleet.submit("hello", pool=pool, idempotency_key=key)
    record = await fleet.get(known)
    assert record.state is JobState.SUCCEEDED
