"""A link to a service with several servers, some of which only its answers name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services.free_port import free_port


@asynccontextmanager
async def server(answer: bytes) -> AsyncGenerator[int]:
    """Answer every connection with the same bytes."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    port = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield port


async def heard_at(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()


def ports_of(link: Proxy) -> list[int]:
    return [int(host.rpartition(":")[2]) for host in link.url.split("/")[2].rpartition("@")[2].split(",")]


async def test_each_server_of_an_address_is_reached_through_a_port_of_the_link() -> None:
    async with (
        server(b"one") as one,
        server(b"two") as two,
        Proxy(f"amqp://guest:secret@127.0.0.1:{one},127.0.0.1:{two}/?heartbeat=2") as link,
    ):
        assert link.url.startswith("amqp://guest:secret@127.0.0.1:")
        assert link.url.endswith("/?heartbeat=2")
        assert [await heard_at(port) for port in ports_of(link)] == [b"one", b"two"]


@pytest.mark.parametrize(
    "address",
    [b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n%d\r\n", b":%d\r\n", b"-MOVED 3999 127.0.0.1:%d\r\n"],
    ids=["Sentinel", "slots", "redirection"],
)
async def test_a_server_that_an_answer_names_is_reached_through_the_link_too(address: bytes) -> None:
    named = free_port()
    async with (
        server(address % named) as sentinel,
        server(b"%d is served" % named) as master,
        Proxy(f"redis+sentinel://127.0.0.1:{sentinel}/service/0", named={named: master}) as link,
    ):
        answer = await heard_at(*ports_of(link))
        port = link.named[named]
        assert answer == address % port
        # What else contains the same digits is not changed.
        assert await heard_at(port) == b"%d is served" % named

        link.hold(Direction.TO_CLIENT)
        held = asyncio.create_task(heard_at(port))
        await link.until_held(Direction.TO_CLIENT)
        assert not held.done()
        link.heal()
        assert await held == b"%d is served" % named


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "redis://:secret@127.0.0.1:6379"])
def test_the_rest_of_an_address_stays(url: str) -> None:
    assert Proxy(url).url.rpartition(":")[0] == url.rpartition(":")[0]
