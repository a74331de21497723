"""Nothing is left of a connection, at whichever step its opening or closing fails or is cancelled."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiormq.abc
import pytest
from aio_pika.abc import UnderlayConnection
from tests.integration.conftest import PATIENCE_S, Connect, eventually

from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.redis.connection import open_redis

STEPS = 60
"""So many turns of the event loop a close is cancelled after: 0, 1, 2 and so on. It takes fewer."""


async def test_a_connect_that_is_cancelled_as_it_succeeds_leaves_no_connection(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = UnderlayConnection.make_connection
    made: list[aiormq.abc.AbstractConnection] = []

    async def make_connection(*arguments: Any, **options: Any) -> aiormq.abc.AbstractConnection:
        connection = await connect(*arguments, **options)
        made.append(connection)
        opening.cancel()
        await asyncio.sleep(0)
        return connection

    async def use() -> None:
        async with open_amqp(services.amqp_url, timeout_s=PATIENCE_S, name="cancelled"):
            pass

    monkeypatch.setattr(UnderlayConnection, "make_connection", make_connection)
    before = asyncio.all_tasks()
    opening = asyncio.create_task(use())
    with pytest.raises(asyncio.CancelledError):
        await opening
    (connection,) = made

    async def is_closed() -> bool:
        return connection.is_closed and asyncio.all_tasks() <= before

    await eventually(is_closed)


def test_a_refused_connection_may_outlive_its_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    # A record would hold the error.
    caplog.set_level(logging.CRITICAL, "aiormq")

    async def refused() -> ServiceUnreachableError | None:
        try:
            async with open_amqp(f"amqp://127.0.0.1:{free_port()}/", timeout_s=PATIENCE_S, name="refused"):
                return None
        except ServiceUnreachableError as error:
            return error

    # The error holds the connection, which is collected while no loop runs: that must not warn.
    with asyncio.Runner() as runner, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        error = runner.run(refused())
        assert error is not None
        asyncio.set_event_loop(None)
        del error
        gc.collect()
    assert not warned


@pytest.mark.parametrize("opened", ["redis", "fleet", "fleet that has published"])
async def test_a_close_that_is_cancelled_leaves_nothing_open(
    services: Services, connect: Connect, pool: str, opened: str
) -> None:
    def open_one() -> AbstractAsyncContextManager[Any]:
        return open_redis(services.redis_url) if opened == "redis" else connect()

    async def use(leave: asyncio.Event, inside: Callable[[], None]) -> None:
        async with open_one() as client:
            if opened == "fleet that has published":
                await client.declare_pool(pool)
            inside()
            await leave.wait()

    before = asyncio.all_tasks()
    for step in range(STEPS):
        leave, inside = asyncio.Event(), asyncio.Event()
        using = asyncio.create_task(use(leave, inside.set))
        await asyncio.wait_for(inside.wait(), PATIENCE_S)
        leave.set()
        for _ in range(step):
            await asyncio.sleep(0)
        using.cancel()
        await asyncio.gather(using, return_exceptions=True)

        async def none_left() -> bool:
            return asyncio.all_tasks() <= before

        await eventually(none_left)
    # Whatever is forgotten while it is open warns, which is an error.
    gc.collect()
