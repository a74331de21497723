"""What the tests of files and batches over HTTP share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types import Batch
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartGateway,
    chat,
)

from inferfleet.gateway.batches import batch_routes, file_routes
from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint
from inferfleet.schemas.job import DEFAULT_TENANT
from inferfleet.worker.engines.simulated import expected_text

ENDLESS: dict[str, Any] = {"max_tokens": 10_000, "simulated": {"tokens": 10_000, "step_delay_s": 0.1}}


def request(custom_id: str, **changes: Any) -> str:
    body = {**chat(custom_id, max_tokens=4), **changes.pop("body", {})}
    line = {"custom_id": custom_id, "method": "POST", "url": Endpoint.CHAT, "body": body, **changes}
    return json.dumps(line) + "\n"


def expected(custom_id: str) -> str:
    return expected_text(Endpoint.CHAT, chat(custom_id, max_tokens=4))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
async def gateway(fleet: Fleet, start_gateway: StartGateway, storage: Path) -> RunningGateway:
    return await start_gateway(files_url=str(storage), state_check_interval_s=0.2)


@pytest.fixture
async def client(gateway: RunningGateway, pool: str) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(gateway) as client:
        yield client


def client_of(gateway: RunningGateway, *, tenant: str = DEFAULT_TENANT) -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=f"{gateway.url}/v1",
        api_key="none",
        default_headers={"Tenant": tenant},
        max_retries=0,
        timeout=PATIENCE_S,
    )


@pytest.fixture
def tenants(monkeypatch: pytest.MonkeyPatch, pool: str) -> str:
    """Let the header ``Tenant`` say who calls. The name of a tenant without anything."""
    for routes in (file_routes, batch_routes):
        monkeypatch.setattr(
            routes,
            "caller_of",
            lambda request: SimpleNamespace(tenant=request.headers.get("tenant", DEFAULT_TENANT), key=None),
        )
    return f"tenant-{pool}"


async def begin(client: AsyncOpenAI, content: str, **options: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint=options.pop("endpoint", "/v1/chat/completions"),
        completion_window=options.pop("completion_window", "24h"),
        **options,
    )


async def until(client: AsyncOpenAI, batch: Batch, *states: str) -> Batch:
    async with asyncio.timeout(PATIENCE_S):
        while (now := await client.batches.retrieve(batch.id)).status not in states:
            await asyncio.sleep(0.05)
    return now


async def lines_of(client: AsyncOpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a file by their ``custom_id``; none is there twice."""
    assert file_id is not None
    content = (await client.files.content(file_id)).text
    lines = list(map(json.loads, content.splitlines()))
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines)
    return by_id


async def texts_of(client: AsyncOpenAI, batch: Batch) -> dict[str, str]:
    return {
        custom_id: line["response"]["body"]["choices"][0]["message"]["content"]
        for custom_id, line in (await lines_of(client, batch.output_file_id)).items()
    }


FORM = "multipart/form-data; boundary=b"


def form(*fields: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return (
        b"".join(
            b"--b\r\nContent-Disposition: form-data; name=" + name.encode() + b"\r\n\r\n" + content + b"\r\n"
            for name, content in fields
        )
        + end
    )


FILE = ("file; filename=x", b"content")
PURPOSE = ("purpose", b"batch")
