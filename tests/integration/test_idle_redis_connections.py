"""A connection to Redis that died while nothing happened costs nobody an error, not even without patience."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import PATIENCE_S, Connect, StartWorker, answer_to, eventually

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer.background import background
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.wire.redis.connection import command_pipeline, redis_client
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pipelined_connection import PipelinedConnection

SOCKET_TIMEOUT_S = 0.5


class ForgetfulNat:
    """A way to a service that forgets connections: what is sent on them goes nowhere, and nobody is told."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._known: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.connections = 0

    def forget(self) -> None:
        self._known.clear()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ForgetfulNat]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            self.url = self._to._replace(netloc=f"127.0.0.1:{port}").geturl()
            yield self
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        back, on = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._known.add(writer)
        self._writers.update((writer, on))

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                if writer in self._known:
                    target.write(data)

        with suppress(ConnectionError):
            await asyncio.gather(carry(reader, on), carry(back, writer))


@asynccontextmanager
async def impatient(url: str) -> AsyncIterator[CommandPipeline]:
    client = redis_client(url, socket_timeout_s=SOCKET_TIMEOUT_S)
    pipeline = command_pipeline(client, patience_s=0)
    async with background(pipeline.run()):
        yield pipeline
    await client.aclose()


async def test_a_connection_that_was_reset_while_idle(services: Services) -> None:
    async with Proxy(services.redis_url) as link, impatient(link.url) as pipeline:
        await pipeline.execute("PING")
        for number in range(5):
            assert link.reset()
            assert await pipeline.execute("ECHO", str(number)) == str(number).encode()


@pytest.mark.usefixtures("real_redis")
async def test_a_connection_that_an_operator_killed(services: Services, store: aioredis.Redis) -> None:
    async with impatient(services.redis_url) as pipeline:
        for number in range(5):
            ours: int = await pipeline.execute("CLIENT", "ID")
            assert await store.execute_command("CLIENT", "KILL", "ID", ours) == 1
            assert await pipeline.execute("ECHO", str(number)) == str(number).encode()


async def test_a_connection_that_a_nat_forgot(services: Services) -> None:
    async with ForgetfulNat(services.redis_url).open() as nat, impatient(nat.url) as pipeline:
        assert await pipeline.execute("ECHO", "before") == b"before"
        nat.forget()
        answers = [pipeline.enqueue("ECHO", str(number)) for number in range(3)]
        assert await asyncio.wait_for(asyncio.gather(*answers), PATIENCE_S) == [b"0", b"1", b"2"]
        assert nat.connections == 2


async def test_many_connections_in_a_row_that_die_at_once_are_an_error_soon(services: Services) -> None:
    """One new connection for each command, not one after the other without an end."""
    async with Proxy(services.redis_url) as link, impatient(link.url) as pipeline:
        await pipeline.execute("PING")
        link.hold(Direction.TO_CLIENT)
        assert link.reset()
        with pytest.raises(ServiceUnreachableError, match="does not answer"):
            await asyncio.wait_for(pipeline.execute("PING"), PATIENCE_S)


@pytest.mark.usefixtures("real_redis")
async def test_a_client_and_its_waits_outlive_all_connections_being_killed(
    connect: Connect, services: Services, store: aioredis.Redis, start_worker: StartWorker, pool: str
) -> None:
    async with ForgetfulNat(services.redis_url).open() as nat, connect(redis_url=nat.url) as fleet:
        await fleet.declare_pool(pool)
        job = await fleet.submit("hello", pool=pool)
        waiting = asyncio.create_task(fleet.wait(job))
        await fleet.get(job)
        for kind in ("normal", "normal"):
            assert await store.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            assert (await fleet.get(job)).id == job.id
        await start_worker()
        assert (await asyncio.wait_for(waiting, PATIENCE_S)).text == answer_to(job)


async def test_a_session_that_was_deleted_although_the_answer_got_lost_is_said_to_be_deleted(
    connect: Connect, services: Services, store: aioredis.Redis, pool: str
) -> None:
    async with Proxy(services.redis_url) as link, connect(redis_url=link.url) as fleet:
        session = fleet.session(f"{pool}-s")
        await session.update_state({"a": 1}, version=0)
        link.hold_answers_to(session.id.encode())
        deleting = asyncio.create_task(session.delete())

        async def is_gone() -> bool:
            return not await store.exists(f"inferfleet:session:{{{session.id}}}")

        await eventually(is_gone)
        await link.until_held(Direction.TO_CLIENT)
        assert link.reset()
        link.heal()
        assert await asyncio.wait_for(deleting, PATIENCE_S) is True
        assert await session.delete() is False


async def test_connections_are_tried_while_nothing_happens(services: Services) -> None:
    client: Any = redis_client(services.redis_url)
    async with PipelinedConnection.opened(client) as line:
        connection: Any = line._connection
        sock: socket.socket = connection._writer.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 30
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) <= 10
    await client.aclose()
