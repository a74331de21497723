"""Clients that send or read slowly, and more of them than a gateway takes."""

from __future__ import annotations

import asyncio
import json
import socket
from urllib.parse import urlsplit

from tests.integration.conftest import (
    PATIENCE_S,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    slow_chat,
)
from tests.integration.gateway.conftest import CHAT, Client, refused

from inferfleet.producer import Fleet


async def test_a_slow_body_and_a_slow_head_are_given_up(fleet: Fleet, start_gateway: StartGateway) -> None:
    url = urlsplit((await start_gateway(read_timeout_s=0.3)).url)

    async def send(text: str) -> bytes:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(text.encode())
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
        await writer.wait_closed()
        return answer

    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert b"body_timeout" in await send(f"{head}Content-Length: 100\r\n\r\n{{")
    assert await send(head) == b""
    assert await send("") == b""


async def test_too_long_a_head_is_given_up(fleet: Fleet, start_gateway: StartGateway) -> None:
    url = urlsplit((await start_gateway(read_timeout_s=10 * PATIENCE_S)).url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)

    writer.write(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 100_000)

    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()


async def test_a_gateway_answers_so_many_requests_at_once(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker
) -> None:
    gateway = await start_gateway(max_open_requests=1)
    await start_worker()
    async with Client(gateway) as http, Client(gateway) as other:
        body = slow_chat(tokens=20_000, step_s=0.01)
        async with http.stream("POST", CHAT, json={**body, "stream": True}) as first:
            assert first.status_code == 200
            refused(await other.get("/v1/models"), 503, "too_many_open_requests")
            refused(await other.post("/rerank", json={}), 503, "too_many_open_requests")
            assert (await other.get("/health/live")).status_code == 200

        async def free() -> bool:
            return (await other.get("/v1/models")).status_code == 200

        await eventually(free)


async def test_a_client_that_reads_no_more_is_cut_off(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker
) -> None:
    await start_worker()
    gateway = await start_gateway(read_timeout_s=0.5, max_open_requests=1)
    url = urlsplit(gateway.url)
    # More than the buffers between them hold.
    asked = chat(stream=True, max_tokens=30_000, ignore_eos=True, n=8, return_token_ids=True)
    body = json.dumps(asked).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    async with Client(gateway) as other:

        async def is_full() -> bool:
            return (await other.get("/v1/models")).status_code == 503

        async def is_free() -> bool:
            return not await is_full()

        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect((url.hostname, url.port))
            silent.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await asyncio.to_thread(silent.recv, 64)
            assert await is_full()
            await eventually(is_free)
