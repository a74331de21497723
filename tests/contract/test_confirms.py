"""What our own publishing on a channel is told, by each broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractQueue
from pamqp.commands import Basic
from tests.contract.conftest import take, take_bodies
from tests.patience import PATIENCE_S

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.wire.rabbitmq.confirms import Confirms, RefusedError, UnroutableError
from inferfleet.wire.rabbitmq.connection import Connection, open_amqp
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel

pytestmark = pytest.mark.matrix


@pytest.fixture
async def connection(contract_services: Services) -> AsyncIterator[Connection]:
    async with open_amqp(contract_services.amqp_url, timeout_s=PATIENCE_S, name="confirms") as connection:
        yield connection


@pytest.fixture
async def publishing(connection: Connection) -> AbstractChannel:
    """The channel that is published on."""
    return await connection.channel()


@pytest.fixture
async def confirms(connection: Connection, publishing: AbstractChannel) -> Confirms:
    underlay = await publishing.get_underlay_channel()
    return Confirms(connection.stream, underlay, frame_max=connection.frame_max, timeout_s=PATIENCE_S)


async def publish(confirms: Confirms, key: str, body: bytes = b"x", **properties: Any) -> None:
    properties.setdefault("message_id", "m")
    await confirms.publish("", body, Basic.Properties(**properties), routing_key=key, mandatory=True)


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000])
async def test_a_body_of_any_size_arrives_whole(confirms: Confirms, queue: AbstractQueue, size: int) -> None:
    body = bytes(position % 251 for position in range(size))
    await publish(confirms, queue.name, body, priority=7, headers={"attempt": 3}, reply_to="client")
    message = await take(queue)
    assert message.body == body
    assert (message.priority, message.headers["attempt"], message.reply_to) == (7, 3, "client")
    await message.ack()


async def test_each_of_many_at_once_is_confirmed(confirms: Confirms, queue: AbstractQueue) -> None:
    bodies = [str(number) for number in range(500)]
    await asyncio.gather(*(publish(confirms, queue.name, body.encode(), message_id=body) for body in bodies))
    assert await take_bodies(queue) == bodies


async def test_only_the_message_for_nobody_is_returned(
    confirms: Confirms, queue: AbstractQueue, name: str
) -> None:
    outcomes = await asyncio.gather(
        publish(confirms, queue.name, message_id="a"),
        publish(confirms, f"{name}.nobody", message_id="b"),
        publish(confirms, queue.name, message_id="c"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), UnroutableError, type(None)]
    assert f"{name}.nobody" in str(outcomes[1])


async def test_a_message_without_an_id_is_returned_as_well(contract_services: Services, name: str) -> None:
    async with aclosing(
        ConfirmChannel(
            contract_services.amqp_url,
            connect_timeout_s=PATIENCE_S,
            confirm_timeout_s=PATIENCE_S,
            name="confirms",
        )
    ) as channel:
        with pytest.raises(UnroutableError):
            await channel.publish("", aio_pika.Message(b"x"), routing_key=name, mandatory=True)


async def test_a_closed_client_opens_no_connection_any_more(
    contract_services: Services, queue: AbstractQueue
) -> None:
    channel = ConfirmChannel(
        contract_services.amqp_url,
        connect_timeout_s=PATIENCE_S,
        confirm_timeout_s=PATIENCE_S,
        name="confirms",
    )
    await channel.publish("", aio_pika.Message(b"x"), routing_key=queue.name, mandatory=True)
    await channel.aclose()
    with pytest.raises(ServiceUnreachableError, match="closed"):
        await channel.publish("", aio_pika.Message(b"x"), routing_key=queue.name, mandatory=True)
    assert await take_bodies(queue) == ["x"]


async def test_a_full_queue_refuses_until_there_is_room(
    confirms: Confirms, channel: AbstractChannel, name: str
) -> None:
    full = await channel.declare_queue(
        f"{name}.full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await publish(confirms, full.name, b"a")
    with pytest.raises(RefusedError, match="full"):
        await publish(confirms, full.name, b"b")
    taken = await take(full)
    await taken.ack()
    await publish(confirms, full.name, b"c")
    assert await take_bodies(full) == ["c"]


async def test_a_closed_channel_fails_what_waits_and_what_comes(
    confirms: Confirms, publishing: AbstractChannel, name: str
) -> None:
    unknown = confirms.publish(
        f"{name}.unknown", b"x", Basic.Properties(message_id="u"), routing_key="", mandatory=False
    )
    with pytest.raises(ConnectionError, match="unknown"):
        await unknown
    assert publishing.is_closed
    with pytest.raises(ConnectionError):
        await publish(confirms, name)


async def test_a_broken_connection_fails_what_waits(
    contract_services: Services, queue: AbstractQueue
) -> None:
    async with (
        Proxy(contract_services.amqp_url) as link,
        open_amqp(link.url, timeout_s=PATIENCE_S, name="confirms") as connection,
    ):
        channel = await (await connection.channel()).get_underlay_channel()
        confirms = Confirms(connection.stream, channel, frame_max=connection.frame_max, timeout_s=PATIENCE_S)
        link.hold(Direction.TO_CLIENT)
        waiting = [
            asyncio.create_task(publish(confirms, queue.name, message_id=str(number))) for number in range(3)
        ]
        await link.until_held(Direction.TO_CLIENT)
        assert link.reset()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, ConnectionError) for outcome in outcomes), outcomes


async def test_each_of_many_waits_as_long_as_it_may(
    contract_services: Services, queue: AbstractQueue
) -> None:
    timeout_s = 0.5
    async with (
        Proxy(contract_services.amqp_url) as link,
        open_amqp(link.url, timeout_s=PATIENCE_S, name="confirms") as connection,
    ):
        channel = await (await connection.channel()).get_underlay_channel()
        confirms = Confirms(connection.stream, channel, frame_max=connection.frame_max, timeout_s=timeout_s)
        # A busy broker may take longer.
        with suppress(TimeoutError):
            await publish(confirms, queue.name)
        link.hold(Direction.TO_CLIENT)

        async def waited_s(number: int) -> float:
            await asyncio.sleep(number * timeout_s / 3)
            started = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                await publish(confirms, queue.name, message_id=str(number))
            return asyncio.get_running_loop().time() - started

        # The timer of the first is still there, and each of the later ones begins while another waits.
        waits = await asyncio.gather(*(waited_s(number) for number in range(4)))
        await link.until_held(Direction.TO_CLIENT)
        assert all(wait >= timeout_s for wait in waits), waits


async def test_a_loop_whose_timers_do_not_say_when_will_do(
    confirms: Confirms, queue: AbstractQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop's do not when they are due at once."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_at", lambda _, callback, *arguments: loop.call_soon(callback, *arguments))
    await asyncio.gather(*(publish(confirms, queue.name, message_id=str(number)) for number in range(3)))


async def test_who_stops_waiting_does_not_disturb_the_others(
    confirms: Confirms, queue: AbstractQueue
) -> None:
    first, second = (
        asyncio.create_task(publish(confirms, queue.name, body.encode(), message_id=body))
        for body in ("first", "second")
    )
    await asyncio.sleep(0)
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await take_bodies(queue) == ["first", "second"]
