"""A batch that is run again, whatever interrupted it and whatever has been lost since."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from tempfile import TemporaryFile
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.forked import ForkedProcess
from tests.integration.batch.conftest import Files, expected, has_lines, request, run_batch
from tests.integration.conftest import (
    INSTANT,
    PATIENCE_S,
    ForeignClient,
    RunCommand,
    StartWorker,
    eventually,
    journal_of,
    kinds_of,
)

from inferfleet.producer import Fleet
from inferfleet.producer.batch import batch_status
from inferfleet.producer.batch.files import ID_PREFIX
from inferfleet.producer.batch.line_ids import line_job_id
from inferfleet.schemas.errors import (
    JobDataLostError,
)
from inferfleet.schemas.names import idempotency_key, job_key, journal_key, request_key, result_key
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker import Completion, Generation, TokenChunk
from inferfleet.worker.engines.simulated import SimulatedEngine

pytestmark = pytest.mark.usefixtures("fleet")  # declares the pool


class GatedEngine(SimulatedEngine):
    """Answers some requests, and the others once the gate is open."""

    def __init__(self, answered: int) -> None:
        super().__init__(model="simulated", max_running=4, engine_args=INSTANT)
        self.gate = asyncio.Event()
        self._left = answered

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        if self._left:
            self._left -= 1
        else:
            await self.gate.wait()
        async with aclosing(super().generate(generation)) as events:
            async for event in events:
                yield event


async def test_ctrl_c_leaves_and_the_same_command_continues(
    environment: dict[str, str],
    inferfleet: RunCommand,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    files: Files,
) -> None:
    names = [f"request-{number}" for number in range(50)]
    files.write(*map(request, names))
    engine = GatedEngine(answered=10)
    await start_worker(engine, max_running=4)
    command = ("batch", "run", str(files.source), "-o", str(files.output), "--pool", pool)

    with TemporaryFile() as err:
        process = ForkedProcess(command, env=environment, stdout=err, stderr=err)
        await eventually(lambda: has_lines(files.output, 10))
        process.send_signal(signal.SIGINT)
        code = await asyncio.wait_for(process.wait(), PATIENCE_S)
        err.seek(0)
        said = err.read().decode()

    assert code == 130
    assert "Traceback" not in said
    assert "10 of 50 lines are done; jobs in flight continue. Go on with:\n" in said
    assert f"inferfleet {' '.join(command)}\n" in said
    status = await inferfleet("batch", "status", str(files.output))
    assert "10 answered in " in status.out
    assert "40 open; no run is going on" in status.out

    engine.gate.set()
    assert (await inferfleet(*command)).code == 0
    assert files.texts() == {name: expected(name) for name in names}
    await assert_each_ran_once(store, files, len(names))


async def assert_each_ran_once(store: aioredis.Redis, files: Files, lines: int) -> None:
    """Every line had one job, which was started once and ended once."""
    batch_id = batch_status(files.output).record.id
    for line in range(1, lines + 1):
        assert kinds_of(await journal_of(store, line_job_id(batch_id, line))) == [
            "queued",
            "running",
            "tokens",
            "finished",
        ]
        assert not await store.exists(job_key(line_job_id(batch_id, line, 1)))


async def test_answers_that_came_while_nobody_ran_the_batch_are_taken(
    start_worker: StartWorker,
    settings: ProducerSettings,
    fleet: Fleet,
    foreign: ForeignClient,
    pool: str,
    files: Files,
) -> None:
    files.write(*(request(name) for name in "abc"))
    running = asyncio.create_task(run_batch(files, settings, pool=pool))

    async def published() -> bool:
        return await foreign.waiting() == 3

    await eventually(published)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert files.answers() == {}
    batch_id = batch_status(files.output).record.id
    await start_worker()
    await fleet.wait_many([line_job_id(batch_id, line) for line in (1, 2, 3)], timeout_s=PATIENCE_S)

    assert (await run_batch(files, settings, pool=pool)).succeeded == 3
    assert files.texts() == {name: expected(name) for name in "abc"}


async def test_jobs_that_still_wait_are_found_and_not_published_again(
    settings: ProducerSettings, foreign: ForeignClient, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(*(request(name) for name in "abc"))
    wait = Fleet.wait
    waited: list[str] = []

    async def noting(self: Fleet, job: str, **options: Any) -> Any:
        waited.append(job)
        return await wait(self, job, **options)

    monkeypatch.setattr(Fleet, "wait", noting)
    for run in (1, 2, 3):
        running = asyncio.create_task(run_batch(files, settings, pool=foreign.pool))
        async with asyncio.timeout(PATIENCE_S):
            while len(waited) < 3 * run:
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    assert len(set(waited)) == 3
    assert await foreign.waiting() == 3


@pytest.mark.parametrize("kept", ["key", "key and record", "nothing"])
async def test_a_line_whose_result_has_expired_runs_again(
    start_worker: StartWorker,
    settings: ProducerSettings,
    store: aioredis.Redis,
    pool: str,
    files: Files,
    kept: str,
) -> None:
    await start_worker()
    files.write(*(request(name) for name in "ab"))
    await run_batch(files, settings, pool=pool)
    (first, second) = files.output.read_bytes().splitlines(keepends=True)
    files.output.write_bytes(first)
    job_id = json.loads(second)["id"].removeprefix(ID_PREFIX)
    await store.delete(result_key(job_id))
    if kept != "key and record":
        await store.delete(job_key(job_id), journal_key(job_id), request_key(job_id))
    if kept == "nothing":
        await store.delete(idempotency_key("7:default", job_id))

    assert (await run_batch(files, settings, pool=pool)).succeeded == 2

    assert files.texts() == {name: expected(name) for name in "ab"}


async def test_a_line_runs_again_however_often_its_result_has_expired_between_two_runs(
    start_worker: StartWorker, settings: ProducerSettings, store: aioredis.Redis, pool: str, files: Files
) -> None:
    await start_worker()
    files.write(request("a"))
    await run_batch(files, settings, pool=pool)
    ids: list[str] = []
    for _ in range(3):
        ids.append(files.answers()["a"]["id"].removeprefix(ID_PREFIX))
        await store.delete(*(key(ids[-1]) for key in (job_key, journal_key, request_key, result_key)))
        files.output.write_bytes(b"")
        assert (await run_batch(files, settings, pool=pool)).succeeded == 1

    assert len(set(ids)) == 3
    assert files.texts() == {"a": expected("a")}


async def test_a_result_that_is_lost_again_and_again_is_an_error(
    start_worker: StartWorker,
    settings: ProducerSettings,
    pool: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start_worker()
    files.write(request("a"))
    submitted: set[str] = set()
    wait = Fleet.wait

    async def losing(self: Fleet, job: str, **options: Any) -> Any:
        submitted.add(job)
        await wait(self, job, **options)
        raise JobDataLostError(job, missing="result")

    monkeypatch.setattr(Fleet, "wait", losing)

    assert (await run_batch(files, settings, pool=pool)).failed == 1
    assert files.failures()[0]["error"]["code"] == "result_lost"
    assert len(submitted) == 2
