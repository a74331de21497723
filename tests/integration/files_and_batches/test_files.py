"""Files through gateways, by OpenAI's own SDK and by hand."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartGateway,
    WorkerProcess,
    eventually,
    reader_of,
)
from tests.integration.files_and_batches.conftest import (
    FILE,
    FORM,
    PURPOSE,
    client_of,
    form,
    request,
)

from inferfleet.gateway.batches import files
from inferfleet.producer import Fleet
from inferfleet.schemas.names import FILES_KEY, file_key


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
