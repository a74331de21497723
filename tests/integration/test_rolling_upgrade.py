"""Producers and workers of the release before and of this one, side by side: no job is lost or stuck."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorker,
    StartWorkerProcess,
    WorkerProcess,
    answer_to,
    assert_whole,
    chat,
    eventually,
    journal_of,
    kinds_of,
    slow_chat,
    text_of,
    until_running,
    until_tokens,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.job import new_job_id
from inferfleet.worker import settlement

ROOT = Path(__file__).parents[2]
PREVIOUS = "533000011320e375c10ac3172aaf1e395eb6d78e"
"""The commit of the release before, 0.2.0."""

PREVIOUS_ROOTS = ("schemas", "wire", "producer", "exporter", "worker", "cli", "local", "testing")

OF_A_LATER_CONTRACT = """
import inferfleet.schemas.names
inferfleet.schemas.names.JOB_MESSAGE_TYPE = "inferfleet.job.v2"
"""


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ``PYTHONPATH`` of the release before."""
    folder = tmp_path_factory.mktemp("previous")
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--format=tar", PREVIOUS, *PREVIOUS_ROOTS],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(f"this is no clone with the history up to 0.2.0: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return os.pathsep.join(str(folder / root) for root in PREVIOUS_ROOTS)


StartWorkerOf = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
def start_worker_of(
    previous: str, environment: dict[str, str], start_worker_process: StartWorkerProcess
) -> StartWorkerOf:
    """Start a worker of a release, "previous" or "this"."""

    async def start(release: str, **variables: str) -> WorkerProcess:
        with pytest.MonkeyPatch.context() as patch:
            if release == "previous":
                patch.setitem(environment, "PYTHONPATH", previous)
            return await start_worker_process(lease_s="1", drain_timeout_s="0", **variables)

    return start


Command = Callable[..., Awaitable[str]]


@pytest.fixture
def command_of(previous: str, environment: dict[str, str]) -> Command:
    """Run ``inferfleet`` of a release, and return its stdout."""

    async def run(release: str, *arguments: str, stdin: str = "") -> str:
        path = {"PYTHONPATH": previous} if release == "previous" else {}
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "inferfleet.cli", *arguments],
            env=environment | path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), PATIENCE_S)
        assert process.returncode == 0, err.decode()
        return out.decode()

    return run


BETWEEN_RELEASES = pytest.mark.parametrize(
    ("first", "second"), [("previous", "this"), ("this", "previous")], ids=["upgrade", "downgrade"]
)


async def test_the_release_before_is_another_one(previous: str) -> None:
    program = "from inferfleet import wire, worker; print(wire.__file__, worker.__file__)"
    environment = os.environ | {"PYTHONPATH": previous}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert all(any(file.startswith(root) for root in previous.split(os.pathsep)) for file in said.split())


@BETWEEN_RELEASES
async def test_a_client_and_a_worker_of_different_releases_understand_each_other(
    fleet: Fleet, command_of: Command, start_worker_of: StartWorkerOf, pool: str, first: str, second: str
) -> None:
    """The client is of one release, the worker of the other; a client of each reads what has happened."""
    session = f"session-{uuid4().hex[:8]}"
    key = ("--idempotency-key", f"key-{uuid4().hex[:8]}")
    to_pool = ("--pool", pool)
    ids = [
        (await command_of(first, "submit", *to_pool, *options)).strip()
        for options in (
            ("plain",),
            ("keyed", *key),
            ("one", "--session", session),
            ("two", "--session", session),
        )
    ]
    again = (await command_of(second, "submit", *to_pool, "keyed", *key)).strip()
    assert again == ids[1]
    await start_worker_of(second)
    results = await fleet.wait_many(ids, timeout_s=PATIENCE_S)
    assert [result.state for result in results] == [JobState.SUCCEEDED] * 4
    for release in (first, second):
        assert (await command_of(release, "get", ids[0])).rstrip("\n") == results[0].text
        assert (await command_of(release, "stream", ids[-1])).rstrip("\n") == results[-1].text
        shown = json.loads(await command_of(release, "session", "show", session, "--json"))
        assert [message["content"] for message in shown["messages"][::2]] == ["one", "two"]


@BETWEEN_RELEASES
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_worker_of_one_release_goes_on_with_the_answer_of_the_other(
    fleet: Fleet,
    start_worker_of: StartWorkerOf,
    store: aioredis.Redis,
    pool: str,
    first: str,
    second: str,
    end: signal.Signals,
) -> None:
    began = await start_worker_of(first)
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    await until_tokens(fleet, job, 5)
    began.signal(end)
    await began.ended()
    await start_worker_of(second)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.text == answer_to(job)
    entries = await journal_of(store, job)
    assert "restarted" not in kinds_of(entries)
    assert_whole(entries)
    assert text_of(entries) == result.text


async def test_a_fleet_of_both_releases_loses_nothing_while_its_workers_are_killed(
    fleet: Fleet, start_worker_of: StartWorkerOf, store: aioredis.Redis, pool: str
) -> None:
    workers = {release: await start_worker_of(release, max_running="4") for release in ("previous", "this")}
    jobs = [await fleet.submit(slow_chat(f"{n}", tokens=20, step_s=0.02), pool=pool) for n in range(60)]
    for release in ("previous", "this", "previous", "this"):
        await until_running(fleet, jobs[0])
        workers[release].signal(signal.SIGKILL)
        await workers[release].ended()
        workers[release] = await start_worker_of(release, max_running="4")
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert [result.text for result in results] == [answer_to(job) for job in jobs]
    for job in jobs:
        assert_whole(await journal_of(store, job))


# A later contract


async def test_a_job_of_a_later_contract_is_left_to_a_newer_worker(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    start_worker_process: StartWorkerProcess,
    monkeypatch: pytest.MonkeyPatch,
    pool: str,
) -> None:
    monkeypatch.setattr(settlement, "LATER_CONTRACT_PAUSE_S", 0.05)
    # More of them than the worker prefetches: those that it understands are not held up.
    later = [Job(id=new_job_id(), pool=pool, body=chat("later")) for _ in range(12)]
    for job in later:
        await foreign.publish(
            job.model_dump_json(exclude_none=True).encode(),
            message_type="inferfleet.job.v2",
            message_id=job.id,
            delivery_mode=2,
        )
    old = await start_worker(max_running=2)
    ours = await fleet.submit("ours", pool=pool)
    assert (await fleet.wait(ours, timeout_s=PATIENCE_S)).text == answer_to(ours)
    await old.stop()
    assert await foreign.waiting() == len(later)
    assert await foreign.letters() == []

    old = await start_worker(max_running=2)
    await start_worker_process(preamble=OF_A_LATER_CONTRACT)

    async def all_ended() -> bool:
        records = await fleet.get_many(later)
        return all(record is not None and record.state is JobState.SUCCEEDED for record in records.values())

    await eventually(all_ended)
