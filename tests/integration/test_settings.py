"""Settings that no other test on real servers sets to something else than its default."""

from __future__ import annotations

import ast
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    journal_of,
    slow_chat,
)

from inferfleet.agents.settings import RunnerSettings
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.gateway.batches import runner
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import InvalidJobError, PublishUnconfirmedError, ServiceUnreachableError
from inferfleet.schemas.journal import TokensEntry
from inferfleet.schemas.limits import LONGEST_S, MOST
from inferfleet.schemas.names import job_key, session_key
from inferfleet.schemas.settings import ProducerSettings, ServiceSettings, WorkerSettings

TESTS = Path(__file__).parents[1]
REAL = ("integration", "chaos", "contract", "deploy")


async def test_connect_timeout_s_ends_an_attempt_to_connect(
    connect: Connect, services: Services, pool: str
) -> None:
    async with Proxy(services.amqp_url) as link:
        link.hold(Direction.TO_CLIENT)
        async with connect(amqp_url=link.url, connect_timeout_s=0.2) as fleet:
            with pytest.raises(ServiceUnreachableError, match="does not answer"):
                await asyncio.wait_for(fleet.submit("hello", pool=pool), PATIENCE_S)


async def test_publish_timeout_s_ends_the_wait_for_a_confirm(
    connect: Connect, services: Services, pool: str
) -> None:
    async with (
        Proxy(services.amqp_url) as link,
        connect(amqp_url=link.url, publish_timeout_s=0.5) as fleet,
    ):
        await fleet.declare_pool(pool)
        await fleet.submit("hello", pool=pool)
        link.hold(Direction.TO_CLIENT)
        with pytest.raises(PublishUnconfirmedError, match=r"within 0\.5 s"):
            await asyncio.wait_for(fleet.submit("hello", pool=pool), PATIENCE_S)


async def test_file_ttl_s_is_how_long_a_file_is_kept(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway(files_url=str(tmp_path), file_ttl_s=60)
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        file = await client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    assert file.expires_at == file.created_at + 60


async def test_a_gateway_runs_no_more_batches_than_batches_at_once(
    start_gateway: StartGateway,
    fleet: Fleet,
    start_worker: StartWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that runs none leaves them to others."""
    monkeypatch.setattr(runner, "LOOK_S", 0.1)
    none = await start_gateway(files_url=str(tmp_path), batches_at_once=0)
    await start_worker()
    async with AsyncOpenAI(base_url=f"{none.url}/v1", api_key="none") as client:
        line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat()}
        file = await client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        # A runner would have begun it.
        await asyncio.sleep(10 * runner.LOOK_S)
        assert (await client.batches.retrieve(batch.id)).status == "validating"

        await start_gateway(files_url=str(tmp_path))

        async def is_completed() -> bool:
            return (await client.batches.retrieve(batch.id)).status == "completed"

        await eventually(is_completed)


async def test_session_ttl_s_is_how_long_an_idle_session_is_kept(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(session_ttl_s=100)
    async with connect(session_ttl_s=100) as fleet:
        await fleet.declare_pool(pool)
        turn = await fleet.submit(Job(pool=pool, body=chat(), session_id=pool))
        (await fleet.wait(turn, timeout_s=PATIENCE_S)).raise_for_state()
    assert 0 < await store.ttl(session_key(pool)) <= 100


async def test_max_body_bytes_refuses_larger_requests(connect: Connect, fleet: Fleet, pool: str) -> None:
    async with connect(max_body_bytes=1000) as careful:
        with pytest.raises(InvalidJobError, match=r"1,?000"):
            await careful.submit("x" * 1000, pool=pool)
    assert await fleet.submit("x" * 1000, pool=pool)


async def test_journal_flush_streamed_s_is_how_often_tokens_of_a_stream_are_written(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(journal_flush_streamed_s=PATIENCE_S)
    job = await fleet.submit(slow_chat(tokens=30, step_s=0.02), pool=pool, stream=True)
    (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()
    written = [entry for entry in await journal_of(store, job) if isinstance(entry, TokensEntry)]
    # The first at once, and all others with the end.
    assert len(written) == 2


async def test_the_longest_times_and_the_largest_numbers_work(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    def longest(settings: type[ServiceSettings]) -> dict[str, Any]:
        times = {name: LONGEST_S for name in settings.model_fields if name.endswith("_s")}
        return {**times, "queue_max_length": MOST, "max_session_bytes": MOST}

    async with connect(**longest(ProducerSettings)) as fleet:
        await fleet.declare_pool(pool)
        session = fleet.session(pool)
        await session.configure(idle_ttl_s=LONGEST_S, max_history_tokens=MOST)
        cancelled = await fleet.submit("hello", pool=pool)
        assert await fleet.cancel(cancelled) is JobState.CANCELLED
        turns = [await session.send("hello", pool=pool) for _ in range(2)]
        await start_worker(**longest(WorkerSettings))
        for turn in turns:
            (await fleet.wait(turn, timeout_s=PATIENCE_S)).raise_for_state()
        await session.update_state({"a": 1}, version=0)
        for key in (session_key(pool), job_key(turns[0].id), job_key(cancelled.id)):
            assert await store.ttl(key) > LONGEST_S / 2
        # They would outlive the services.
        await session.delete()
        await store.delete(*(job_key(job.id) for job in (*turns, cancelled)))


def test_every_setting_is_set_in_a_test_on_real_servers() -> None:
    used: set[str] = set()
    for path in (path for folder in REAL for path in (TESTS / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg is not None:
                used.add(node.arg)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value.removeprefix("INFERFLEET_").removeprefix("--").replace("-", "_").lower())
    used.add("queue_type")  # by the matrix
    documented = (GatewaySettings, WorkerSettings, RunnerSettings, ExporterSettings)
    assert {name for settings in documented for name in settings.model_fields} <= used
