"""A connection to RabbitMQ that died while nobody used it costs the next call only time, and no error."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from aio_pika.abc import AbstractChannel
from tests.conftest import Control
from tests.integration.conftest import PATIENCE_S, Connect, StartWorker, chat, until_running

from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.job import OnBusy
from inferfleet.wire.rabbitmq import publishing
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.topology import declare_exchanges

Call = Callable[[Fleet, str], Awaitable[Any]]


async def submit(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hello", pool=pool)
    assert (await fleet.get(job)).state is JobState.QUEUED


async def declare(fleet: Fleet, pool: str) -> None:
    await fleet.declare_pool(pool)


async def submit_turn_that_waits(fleet: Fleet, pool: str) -> None:
    """Asks for the pool's queue, and publishes nothing itself."""
    for _ in range(2):
        await fleet.submit(Job(pool=pool, body=chat(), session_id=pool, on_busy=OnBusy.ENQUEUE))


CALLS = pytest.mark.parametrize(
    "call", [pytest.param(submit, marks=pytest.mark.matrix), declare, submit_turn_that_waits]
)


@pytest.fixture
async def link(services: Services) -> AsyncIterator[Proxy]:
    async with Proxy(f"{services.amqp_url}?heartbeat=1") as link:
        yield link


@pytest.fixture
async def idle(connect: Connect, link: Proxy, pool: str) -> AsyncIterator[Fleet]:
    """A client without patience that has published once, through the link."""
    async with connect(amqp_url=link.url, patience_s=0) as fleet:
        await fleet.declare_pool(pool)
        await fleet.submit("before", pool=pool)
        yield fleet


@CALLS
async def test_after_a_reset_the_first_call_works(idle: Fleet, link: Proxy, pool: str, call: Call) -> None:
    assert link.reset()
    await call(idle, pool)


@CALLS
async def test_after_a_reset_that_has_been_noticed_the_first_call_works(
    idle: Fleet, link: Proxy, pool: str, call: Call
) -> None:
    assert link.reset()
    for _ in range(20):
        await asyncio.sleep(0)
    await call(idle, pool)


@CALLS
async def test_on_a_connection_that_a_firewall_forgot_the_first_call_works(
    idle: Fleet, link: Proxy, pool: str, call: Call
) -> None:
    assert link.strand()
    async with asyncio.timeout(PATIENCE_S):
        await call(idle, pool)


async def test_on_a_connection_that_ends_between_its_channels_the_first_call_works(
    connect: Connect, link: Proxy, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client opens one channel to declare the exchanges, and the next one to publish."""
    declared: list[AbstractChannel] = []

    async def declare_and_lose_the_connection(channel: AbstractChannel) -> None:
        await declare_exchanges(channel)
        declared.append(channel)
        if len(declared) == 1:
            ended = (await channel.get_underlay_channel()).connection.closing
            link.reset()
            with suppress(ConnectionError):
                await ended

    async with connect(amqp_url=link.url, patience_s=0) as fleet:
        await fleet.declare_pool(pool)
        monkeypatch.setattr(publishing, "declare_exchanges", declare_and_lose_the_connection)
        await submit(fleet, pool)
    assert len(declared) == 2


@pytest.mark.matrix
async def test_after_the_operator_closed_all_connections_the_first_call_works(
    idle: Fleet, control: Control, pool: str
) -> None:
    await control("close_all_connections", "--global", "closed by hand")
    await submit(idle, pool)


@pytest.mark.matrix
async def test_after_a_restart_of_the_broker_the_first_call_works(
    idle: Fleet, services: Services, pool: str
) -> None:
    if services.broker is None:
        pytest.skip("these services cannot be killed")
    await asyncio.to_thread(services.broker.kill)
    await asyncio.to_thread(services.broker.start)
    await submit(idle, pool)


@pytest.mark.matrix
async def test_an_order_to_a_worker_gets_through_on_a_dead_connection(
    idle: Fleet, link: Proxy, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await idle.submit(chat(simulated={"tokens": 100_000, "step_delay_s": 0.05}), pool=pool)
    await until_running(idle, job)
    assert link.reset()
    await idle.cancel(job)
    assert (await idle.wait(job, timeout_s=PATIENCE_S)).state is JobState.CANCELLED


@pytest.mark.matrix
async def test_a_silent_broker_is_noticed_by_missed_heartbeats(link: Proxy) -> None:
    async with open_amqp(link.url, timeout_s=PATIENCE_S, name="silent") as connection:
        assert connection.transport is not None
        assert link.strand()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(connection.transport.connection.closing, PATIENCE_S)


async def test_tcp_asks_whether_the_other_end_is_there(services: Services) -> None:
    """For connections without heartbeats."""
    async with open_amqp(
        f"{services.amqp_url}?heartbeat=0", timeout_s=PATIENCE_S, name="keepalive"
    ) as connection:
        assert connection.stream._writer is not None
        end = connection.stream._writer.get_extra_info("socket")
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
