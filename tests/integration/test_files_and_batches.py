"""Files and batches through gateways, by OpenAI's own SDK and by hand."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import openai
import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI, OpenAI
from openai.types import Batch
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartGateway,
    StartWorker,
    WorkerProcess,
    chat,
    eventually,
    reader_of,
)

from inferfleet.gateway.batches import batch_routes, file_routes, files, output, run, runner
from inferfleet.gateway.webhooks.webhooks import Webhooks
from inferfleet.producer import Fleet, JobFilter
from inferfleet.schemas import Endpoint
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.job import DEFAULT_TENANT
from inferfleet.schemas.names import FILES_KEY, batch_key, file_key
from inferfleet.wire.redis.batches import BatchRecords
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


# Files


async def test_files_are_listed_read_and_deleted(client: AsyncOpenAI, tmp_path: Path, storage: Path) -> None:
    path = tmp_path / "ä requests.jsonl"
    path.write_text(request("a"))

    with path.open("rb") as file:
        made = await client.files.create(
            file=file, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    others = [
        await client.files.create(file=(name, b"x" * 10), purpose="batch") for name in ("b", "../../etc/c")
    ]

    assert (made.object, made.filename, made.purpose, made.bytes) == (
        "file",
        path.name,
        "batch",
        path.stat().st_size,
    )
    assert made.expires_at == made.created_at + 3600
    assert await client.files.retrieve(made.id) == made
    assert (await client.files.content(made.id)).text == path.read_text()
    assert others[1].filename == "c"
    ids = [each.id for each in (made, *others)]
    mine = [each.id async for each in client.files.list(limit=2) if each.id in ids]
    assert mine == ids[::-1]
    ascending = [each.id async for each in client.files.list(order="asc", purpose="batch") if each.id in ids]
    assert ascending == ids
    assert [each async for each in client.files.list(purpose="batch_output") if each.id in ids] == []
    # Deleting what a page has does not disturb the next one.
    deleted = [
        (await client.files.delete(each.id)).deleted
        async for each in client.files.list(limit=1)
        if each.id in ids
    ]
    assert deleted == [True] * 3
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            await call(made.id)
        assert refused.value.code == "file_not_found"


async def test_an_upload_that_is_cut_off_leaves_nothing(gateway: RunningGateway, storage: Path) -> None:
    url = urlsplit(gateway.url)
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    )

    async def stored() -> bool:
        return any((storage / "files").glob("*"))

    async def gone() -> bool:
        return not await stored()

    _, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(head.encode() + b"x" * 3_000_000)
    await writer.drain()
    await eventually(stored)
    writer.transport.abort()

    await eventually(gone)


async def test_a_long_upload_takes_little_memory(
    fleet: Fleet, environment: dict[str, str], storage: Path
) -> None:
    readable, writable = os.pipe()
    with os.fdopen(writable, "wb") as log:
        process = ForkedProcess(
            ["gateway", "--http-port", "0"],
            env={**environment, "INFERFLEET_FILES_URL": str(storage)},
            stdout=log,
            stderr=log,
        )
    gateway = WorkerProcess(process, await reader_of(readable))
    try:
        url = (await gateway.logged("serving OpenAI's API"))["message"].rpartition(" ")[2]
        status = Path(f"/proc/{process.pid}/status")

        def peak_kib() -> int:
            return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])

        async def long() -> AsyncIterator[bytes]:
            yield b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\n"
            for _ in range(100):
                yield b"x" * (1 << 20)
            yield b"\r\n" + form(PURPOSE)

        async with httpx2.AsyncClient(timeout=PATIENCE_S) as http:
            await http.post(f"{url}/files", content=form(PURPOSE, FILE), headers={"Content-Type": FORM})
            before = peak_kib()
            answer = await http.post(f"{url}/files", content=long(), headers={"Content-Type": FORM})
            made = answer.json()
            got = hashlib.sha256()
            async with http.stream("GET", f"{url}/files/{made['id']}/content") as content:
                async for piece in content.aiter_bytes():
                    got.update(piece)

        assert made["bytes"] == 100 << 20
        assert got.digest() == hashlib.sha256(b"x" * (100 << 20)).digest()
        assert peak_kib() - before < 32 * 1024
    finally:
        await gateway.close()


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


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (form(FILE), {}, 400, "invalid_request"),
        (form(PURPOSE), {}, 400, "invalid_request"),
        (form(("purpose", b"assistants"), FILE), {}, 400, "invalid_request"),
        (form(PURPOSE, FILE, FILE), {}, 400, "invalid_request"),
        (form(PURPOSE, ("file; filename=x", b"")), {}, 400, "invalid_request"),
        (form(PURPOSE, FILE, ("color", b"red")), {}, 400, "invalid_request"),
        (form(PURPOSE, FILE, ("x" * 9, b"y" * 2000)), {}, 400, "invalid_request"),
        (form(PURPOSE, FILE, ("expires_after[anchor]", b"now")), {}, 400, "invalid_request"),
        (
            form(
                PURPOSE,
                FILE,
                ("expires_after[anchor]", b"created_at"),
                ("expires_after[seconds]", b"1"),
            ),
            {},
            400,
            "invalid_request",
        ),
        (form(PURPOSE, FILE, end=b""), {}, 400, "invalid_request"),
        (b"no form", {}, 400, "invalid_request"),
        (b"", {}, 400, "invalid_request"),
        (form(PURPOSE, FILE), {"Content-Type": "multipart/form-data"}, 415, "not_a_form"),
        (b"{}", {"Content-Type": "application/json"}, 415, "not_a_form"),
        (form(PURPOSE, FILE), {"Origin": "http://evil.example"}, 403, "forbidden_origin"),
        (form(PURPOSE, FILE), {"Origin": "http://[bad"}, 403, "forbidden_origin"),
        (form(PURPOSE, ("file; filename=x", b"x" * 200_000)), {}, 413, "file_too_large"),
        (form(("file; filename=x", b"x" * 50_000), PURPOSE), {}, 413, "file_too_large"),
    ],
)
async def test_a_form_that_is_no_file_is_refused(
    start_gateway: StartGateway,
    fleet: Fleet,
    storage: Path,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    gateway = await start_gateway(files_url=str(storage), max_file_bytes=10_000)
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        answer = await http.post("/v1/files", content=content, headers={"Content-Type": FORM, **headers})

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert not any((storage / "files").glob("*"))


async def test_a_form_that_comes_too_slowly_is_refused(
    start_gateway: StartGateway, fleet: Fleet, storage: Path
) -> None:
    gateway = await start_gateway(files_url=str(storage), read_timeout_s=0.3)

    async def slowly() -> AsyncIterator[bytes]:
        yield form(PURPOSE, end=b"")
        # The client reads no answer before it has sent everything.
        await asyncio.sleep(10 * 0.3)

    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        answer = await http.post("/v1/files", content=slowly(), headers={"Content-Type": FORM})

    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_timeout")


async def test_a_tenant_has_no_more_files_than_it_may(
    start_gateway: StartGateway, fleet: Fleet, storage: Path, tenants: str, store: aioredis.Redis
) -> None:
    gateway = await start_gateway(files_url=str(storage), max_files=2)
    async with client_of(gateway, tenant=tenants) as client:
        first, _ = [await client.files.create(file=("x", b"x"), purpose="batch") for _ in range(2)]
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await client.files.create(file=("x", b"x"), purpose="batch")
        assert refused.value.code == "too_many_files"

        # Those that have expired do not count.
        await store.delete(file_key(first.id))
        await client.files.create(file=("x", b"x"), purpose="batch")


async def test_the_content_of_expired_and_deleted_files_is_removed(
    start_gateway: StartGateway,
    fleet: Fleet,
    storage: Path,
    store: aioredis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "SWEEP_S", 0.1)
    gateway = await start_gateway(files_url=str(storage))
    async with client_of(gateway) as client:
        expired, deleted, kept = [
            await client.files.create(file=("x", b"x"), purpose="batch") for _ in range(3)
        ]
        await store.zadd(FILES_KEY, {expired.id: 1})
        await store.delete(file_key(expired.id))
        await client.files.delete(deleted.id)

        async def removed() -> bool:
            return [path.name for path in (storage / "files").iterdir()] == [kept.id]

        await eventually(removed)


# What is wrong with a batch


async def test_a_file_whose_lines_are_no_requests_fails_and_says_why(client: AsyncOpenAI) -> None:
    content = (
        request("a")
        + "no JSON\n"
        + "[]\n"
        + '{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions"}\n'
        + request("c", url="/v1/embeddings")
        + request("d", url="/v1/nothing")
        + request("e", method="GET")
        + request("")
    )

    failed = await until(client, await begin(client, content), "failed")

    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [(error.line, error.code, error.param) for error in failed.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "invalid_request", None),
        (4, "missing_required_parameter", "body"),
        (5, "invalid_url", "url"),
        (6, "invalid_url", "url"),
        (7, "invalid_method", "method"),
        (8, "invalid_custom_id", "custom_id"),
    ]
    assert failed.failed_at is not None
    assert (failed.output_file_id, failed.error_file_id) == (None, None)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (request("a") + request("b") + request("a"), "duplicate_custom_id"),
        ("\n \n", "empty_file"),
        ("".join(request(str(number)) for number in range(6)), "too_many_lines"),
    ],
)
async def test_a_file_that_is_no_batch_as_a_whole_fails(
    start_gateway: StartGateway, fleet: Fleet, storage: Path, content: str, code: str
) -> None:
    gateway = await start_gateway(files_url=str(storage), max_batch_lines=5)
    async with client_of(gateway) as client:
        failed = await until(client, await begin(client, content), "failed")

    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [error.code for error in failed.errors.data] == [code]


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


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"input_file_id": f"file-{'0' * 32}"}, 404, "file_not_found"),
        ({"input_file_id": "x"}, 404, "file_not_found"),
        ({"input_file_id": 3}, 400, "invalid_request"),
        ({"endpoint": "/v1/responses"}, 400, "invalid_request"),
        ({"endpoint": None}, 400, "invalid_request"),
        ({"completion_window": "1 day"}, 400, "invalid_request"),
        ({"completion_window": "31d"}, 400, "invalid_request"),
        ({"completion_window": 24}, 400, "invalid_request"),
        ({"metadata": {"a": 1}}, 400, "invalid_request"),
        ({"metadata": {str(number): "" for number in range(17)}}, 400, "invalid_request"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "invalid_request"),
        ({"output_expires_after": [1]}, 400, "invalid_request"),
        ({"speed": "high"}, 400, "invalid_request"),
        ({"inferfleet": {"priority": "top"}}, 400, "invalid_request"),
        ({"inferfleet": {"pool": "A B"}}, 400, "invalid_request"),
        ({"inferfleet": {"session_id": "s"}}, 400, "invalid_request"),
        ({"inferfleet": {"timeout_s": -1}}, 400, "invalid_request"),
        ({"inferfleet": {"max_attempts": "x"}}, 400, "invalid_request"),
    ],
)
async def test_a_batch_that_breaks_the_contract_is_refused(
    gateway: RunningGateway, client: AsyncOpenAI, changes: dict[str, Any], status: int, code: str
) -> None:
    file = await client.files.create(file=("x", b"x"), purpose="batch")
    order = {
        "input_file_id": file.id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        **changes,
    }
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        answer = await http.post("/v1/batches", json=order)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def test_a_gateway_without_a_storage_says_so(start_gateway: StartGateway, fleet: Fleet) -> None:
    gateway = await start_gateway()
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        answers = [
            await http.get("/v1/files"),
            await http.post("/v1/files", content=form(PURPOSE, FILE), headers={"Content-Type": FORM}),
            await http.get(f"/v1/files/file-{'0' * 32}"),
            await http.get("/v1/batches"),
            await http.post("/v1/batches", json={}),
            await http.post(f"/v1/batches/batch_{'0' * 32}/cancel"),
        ]

    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {
        (404, "no_storage")
    }


async def test_a_storage_that_cannot_be_reached_is_an_error_at_the_start(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for url in (f"{tmp_path}/file/x", "no-such-protocol://x"):
        with pytest.raises(ConfigurationError, match="INFERFLEET_FILES_URL"):
            await start_gateway(files_url=url)


# Tenants


async def test_what_belongs_to_another_tenant_does_not_exist(
    gateway: RunningGateway, start_worker: StartWorker, tenants: str
) -> None:
    await start_worker()
    async with client_of(gateway, tenant=tenants) as mine, client_of(gateway) as other:
        batch = await begin(mine, request("a"))
        done = await until(mine, batch, "completed")
        assert done.output_file_id is not None

        for file_id in (batch.input_file_id, done.output_file_id):
            for call in (other.files.retrieve, other.files.content, other.files.delete):
                foreign, unknown = [await refusal(call(each)) for each in (file_id, file_id[:-4] + "0000")]
                assert foreign.replace(file_id, "") == unknown.replace(file_id[:-4] + "0000", "")
        for batch_call in (other.batches.retrieve, other.batches.cancel):
            assert "there is no batch" in await refusal(batch_call(batch.id))
        with pytest.raises(openai.NotFoundError):
            await other.batches.create(
                input_file_id=batch.input_file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
        assert batch.id not in [each.id async for each in other.batches.list()]
        assert [each.id async for each in mine.batches.list()] == [batch.id]
        assert [each.id async for each in mine.files.list()] == [done.output_file_id, batch.input_file_id]


async def refusal(call: Awaitable[Any]) -> str:
    with pytest.raises(openai.NotFoundError) as refused:
        await call
    return refused.value.message


async def test_a_tenant_has_no_more_open_batches_than_it_may(
    start_gateway: StartGateway, fleet: Fleet, pool: str, storage: Path, tenants: str
) -> None:
    gateway = await start_gateway(files_url=str(storage), max_batches=2, batches_at_once=1)
    async with client_of(gateway, tenant=tenants) as client, client_of(gateway) as other:
        batches = [await begin(client, request("a")) for _ in range(2)]
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await begin(client, request("a"))
        assert refused.value.code == "too_many_batches"
        batches.append(await begin(other, request("a")))

        # The other one has the only place, and cancelling needs none.
        await client.batches.cancel(batches[1].id)
        await until(client, batches[1], "cancelled")

        async def accepted() -> bool:
            with suppress(openai.PermissionDeniedError):
                batches.append(await begin(client, request("a")))
            return len(batches) == 4

        await eventually(accepted)


async def test_a_batch_that_redis_did_not_confirm_is_not_ordered_twice(
    client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(*_: Any, **__: Any) -> None:
        raise ServiceUnreachableError("away")

    monkeypatch.setattr(BatchRecords, "create", create)
    with pytest.raises(openai.InternalServerError) as refused:
        await begin(client, request("a"))

    assert refused.value.code == "batch_unconfirmed"
    assert refused.value.response.headers["x-should-retry"] == "false"


# Cancelled and expired


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


# What dies


async def test_the_input_may_be_deleted_while_the_batch_runs(
    client: AsyncOpenAI, gateway: RunningGateway, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    batch = await begin(client, request("a"))
    await until(client, batch, "in_progress")
    await client.files.delete(batch.input_file_id)
    await start_worker()

    assert await texts_of(client, await until(client, batch, "completed")) == {"a": expected("a")}


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
