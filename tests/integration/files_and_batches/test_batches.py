"""Batches through gateways, by OpenAI's own SDK: from the upload to the output."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime
from pathlib import Path

import openai
import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI, OpenAI
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartWorker,
    eventually,
)
from tests.integration.files_and_batches.conftest import (
    ENDLESS,
    begin,
    expected,
    lines_of,
    request,
    texts_of,
    until,
)

from inferfleet.gateway.batches import batch_routes
from inferfleet.gateway.batches.run import BatchRun
from inferfleet.gateway.webhooks.webhooks import Webhooks
from inferfleet.producer import Fleet, JobFilter
from inferfleet.schemas.job import DEFAULT_TENANT


async def test_a_batch_runs_from_upload_to_output(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str, str]] = []

    async def tell(_: Webhooks, tenant: str, event_type: str, object_id: str, at: datetime) -> None:
        told.append((tenant, event_type, object_id))

    monkeypatch.setattr(Webhooks, "tell", tell)
    await start_worker()
    names = [f"line {number}" for number in range(30)]

    batch = await begin(
        client, "".join(request(name, body={"model": pool}) for name in names), metadata={"a": "b"}
    )
    done = await until(client, batch, "completed")

    assert await texts_of(client, done) == {name: expected(name) for name in names}
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 30, "completed": 30, "failed": 0}
    assert done.error_file_id is None
    assert done.metadata == {"a": "b"}

    async def has_told() -> bool:
        return told == [(DEFAULT_TENANT, "batch.completed", batch.id)]

    await eventually(has_told)


async def test_the_blocking_sdk_does_all_of_it_too(
    gateway: RunningGateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    await start_worker()
    path = tmp_path / "in.jsonl"
    path.write_text(request("a") + request("b"))

    def work() -> dict[str, str]:
        with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=PATIENCE_S) as client:
            with path.open("rb") as file:
                made = client.files.create(file=file, purpose="batch")
            batch = client.batches.create(
                input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            assert batch.id in [each.id for each in client.batches.list(limit=1)]
            while (batch := client.batches.retrieve(batch.id)).status != "completed":
                time.sleep(0.05)
            assert batch.output_file_id is not None
            lines = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
            return {
                line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
                for line in lines
            }

    assert await asyncio.to_thread(work) == {name: expected(name) for name in "ab"}


async def test_a_line_without_an_answer_is_in_the_error_file(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    content = (
        request("good")
        + request("hot", body={"temperature": 9})
        + request("who", body={"model": f"{pool}-no-such"})
        + request("fails", body={"simulated": {"fail": "prompt_too_long"}})
    )

    done = await until(client, await begin(client, content), "completed")

    assert await texts_of(client, done) == {"good": expected("good")}
    errors = await lines_of(client, done.error_file_id)
    assert {name: line["response"]["status_code"] for name, line in errors.items()} == {
        "hot": 400,
        "who": 400,
        "fails": 400,
    }
    assert errors["fails"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert "temperature" in errors["hot"]["response"]["body"]["error"]["message"]
    assert "no-such" in errors["who"]["response"]["body"]["error"]["message"]
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 4, "completed": 1, "failed": 3}


async def test_a_batch_is_cancelled_in_the_middle(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(max_running=2, look_ahead=0)
    content = "".join(map(request, "ab")) + "".join(request(f"z{n}", body=ENDLESS) for n in range(30))
    batch = await begin(client, content)

    async def some_answered() -> bool:
        return (await client.batches.retrieve(batch.id)).request_counts.completed == 2

    await eventually(some_answered)
    assert (await client.batches.cancel(batch.id)).status in {"cancelling", "cancelled"}
    done = await until(client, batch, "cancelled")

    assert await texts_of(client, done) == {name: expected(name) for name in "ab"}
    errors = await lines_of(client, done.error_file_id)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
    assert len(errors) == 30
    assert done.cancelling_at is not None
    assert [record async for record in fleet.list_jobs(JobFilter(pool=pool))] == []
    assert (await client.batches.cancel(batch.id)).status == "cancelled"


async def test_a_batch_that_has_ended_cannot_be_cancelled(
    client: AsyncOpenAI, start_worker: StartWorker
) -> None:
    await start_worker()
    batch = await begin(client, request("a"))
    await until(client, batch, "completed")

    with pytest.raises(openai.ConflictError) as refused:
        await client.batches.cancel(batch.id)
    assert refused.value.code == "batch_not_cancellable"


async def test_a_batch_ends_with_its_window_and_keeps_what_it_has(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_routes, "_MINUTES", {"m": 1 / 30})
    await start_worker(max_running=3, look_ahead=0)
    content = "".join(map(request, "ab")) + "".join(request(f"z{n}", body=ENDLESS) for n in range(5))

    done = await until(client, await begin(client, content, completion_window="1m"), "expired")

    assert await texts_of(client, done) == {name: expected(name) for name in "ab"}
    errors = await lines_of(client, done.error_file_id)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 7, "completed": 2, "failed": 5}


async def test_a_batch_whose_lines_find_its_end_first_has_expired_too(
    client: AsyncOpenAI, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_routes, "_MINUTES", {"m": 1 / 30})
    # The gateway is late.
    monkeypatch.setattr(BatchRun, "_remaining_s", lambda _: PATIENCE_S)
    batch = await begin(client, "".join(map(request, "ab")), completion_window="1m")

    async def is_over() -> bool:
        return batch.expires_at is not None and time.time() > batch.expires_at + 1

    await eventually(is_over)
    await start_worker()

    done = await until(client, batch, "expired")

    errors = await lines_of(client, done.error_file_id)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 2, "completed": 0, "failed": 2}


async def test_the_window_decides_the_priority_unless_the_caller_does(
    client: AsyncOpenAI, fleet: Fleet, pool: str
) -> None:
    for window, options, priority in (
        ("24h", {}, 1),
        ("12h", {}, 2),
        ("30m", {}, 3),
        ("24h", {"priority": "high"}, 7),
    ):
        batch = await begin(
            client, request("a"), completion_window=window, extra_body={"inferfleet": options}
        )

        async def queued(priority: int = priority) -> bool:
            where = JobFilter(pool=pool, priority=priority)
            return len([record async for record in fleet.list_jobs(where)]) == 1

        await eventually(queued)
        await client.batches.cancel(batch.id)
        await until(client, batch, "cancelled")


async def test_the_input_may_be_deleted_while_the_batch_runs(
    client: AsyncOpenAI, gateway: RunningGateway, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    batch = await begin(client, request("a"))
    await until(client, batch, "in_progress")
    await client.files.delete(batch.input_file_id)
    await start_worker()

    assert await texts_of(client, await until(client, batch, "completed")) == {"a": expected("a")}
