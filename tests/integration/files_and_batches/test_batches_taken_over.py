"""Gateways that stop or die, and others that continue their batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI
from tests.integration.conftest import (
    RunningGateway,
    StartGateway,
    StartWorker,
    eventually,
)
from tests.integration.files_and_batches.conftest import (
    begin,
    client_of,
    expected,
    lines_of,
    request,
    texts_of,
    until,
)

from inferfleet.gateway.batches import files, output, run, runner
from inferfleet.producer import Fleet, JobFilter
from inferfleet.schemas.names import batch_key
from inferfleet.wire.redis.batches import BatchRecords
from inferfleet.wire.redis.pipeline import CommandPipeline


async def test_a_stopping_gateway_hands_its_batches_over(
    client: AsyncOpenAI,
    fleet: Fleet,
    store: aioredis.Redis,
    pool: str,
    gateway: RunningGateway,
    start_gateway: StartGateway,
    start_worker: StartWorker,
    storage: Path,
) -> None:
    batch = await begin(client, request("a"))
    await until(client, batch, "in_progress")

    async def submitted() -> bool:
        return [record async for record in fleet.list_jobs(JobFilter(pool=pool))] != []

    await eventually(submitted)
    await gateway.stop()
    # Without it, the next gateway could not tell where jobs go while there is no worker.
    assert json.loads(await store.hget(batch_key(batch.id), "pools") or "") == {"": pool}
    other = await start_gateway(files_url=str(storage), state_check_interval_s=0.2)
    await start_worker()

    async with client_of(other) as client:
        assert await texts_of(client, await until(client, batch, "completed")) == {"a": expected("a")}


@pytest.mark.parametrize("window", ["part", "output", "end"])
async def test_a_runner_that_dies_at_the_worst_moment_loses_and_doubles_nothing(
    client: AsyncOpenAI,
    start_worker: StartWorker,
    storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    window: str,
) -> None:
    monkeypatch.setattr(run, "LEASE_S", 1.0)
    monkeypatch.setattr(runner, "LEASE_S", 1.0)
    monkeypatch.setattr(run, "BEAT_S", 0.2)
    monkeypatch.setattr(runner, "LOOK_S", 0.1)
    await start_worker()
    target, name = {
        "part": (output.Parts, "_write"),
        "output": (files.Files, "store"),
        "end": (run.BatchRun, "_conclude"),
    }[window]
    real = getattr(target, name)
    died: list[int] = []

    def die(*_: Any) -> None:
        if len(died) < 2:
            died.append(1)
            raise RuntimeError("dies")

    if window == "part":

        def write(*arguments: Any) -> None:
            real(*arguments)
            die()

        monkeypatch.setattr(target, name, write)
    else:

        async def call(*arguments: Any, **options: Any) -> Any:
            if window == "end":
                die()
            made = await real(*arguments, **options)
            die()
            return made

        monkeypatch.setattr(target, name, call)
    names = [f"line {number}" for number in range(20)]

    batch = await begin(client, "".join(map(request, names)) + request("hot", body={"temperature": 9}))
    done = await until(client, batch, "completed")

    async def concluded() -> bool:
        return not (storage / "batches" / batch.id).exists()

    await eventually(concluded)
    assert len(died) == 2
    assert await texts_of(client, done) == {name: expected(name) for name in names}
    lines = await lines_of(client, done.output_file_id)
    # Each line has had one job.
    assert {UUID(line["response"]["request_id"]).int & 0xFF for line in lines.values()} == {0}
    assert list(await lines_of(client, done.error_file_id)) == ["hot"]
    listed = [each.id async for each in client.files.list()]
    assert listed.count(done.output_file_id or "") == listed.count(done.error_file_id or "") == 1


async def test_a_clock_that_is_set_back_makes_no_lease_longer(
    start_gateway: StartGateway, pipeline: CommandPipeline, store: aioredis.Redis, pool: str, storage: Path
) -> None:
    gateway = await start_gateway(files_url=str(storage), batches_at_once=0)
    async with client_of(gateway) as client:
        batch = await begin(client, request("a"))
    records = BatchRecords(pipeline)
    assert await records.claim(batch.id, runner="dead", lease_s=10)
    lease: Any = await store.hget(batch_key(batch.id), "lease_until")
    await store.hset(batch_key(batch.id), "lease_until", int(lease) + 3600_000)
    assert await records.claim(batch.id, runner="another", lease_s=0.1) is None

    async def claimed() -> bool:
        return await records.claim(batch.id, runner="another", lease_s=0.1) is not None

    await eventually(claimed)
    await records.close(batch.id)
