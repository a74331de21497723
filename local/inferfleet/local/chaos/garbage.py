"""Publishes messages that are not jobs, like a foreign AMQP client that only knows the exchange."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import orjson
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractExchange
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError

from inferfleet.local.chaos.harness import PATIENCE_S, Harness
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import JOBS_EXCHANGE
from inferfleet.wire.rabbitmq.connection import open_amqp

EVERY_S = (0.2, 0.8)

PAUSE_S = 0.5
"""The pause between two attempts while the broker is unreachable."""

_OUTAGE = (AMQPError, ChannelInvalidStateError, ServiceUnreachableError, OSError)


class Garbage:
    """Publishes one such message after another. ``sent`` has the body of each that the broker confirmed.

    Each body names its message, so that it can be found again. ``named`` has the ids of the jobs that such a
    message names, although it is not a job.
    """

    def __init__(self, harness: Harness, *, rng: random.Random) -> None:
        self._harness = harness
        self._rng = rng
        self.sent: set[bytes] = set()
        self.named: set[str] = set()

    async def publish(self) -> None:
        """Publish until cancelled. Wait for the end of an outage of the broker."""
        number = 0
        while True:
            try:
                async with AsyncExitStack() as stack:
                    exchange = await self._exchange(stack)
                    while True:
                        await asyncio.sleep(self._rng.uniform(*EVERY_S))
                        number += 1
                        await self._publish(exchange, number)
            except _OUTAGE:
                await asyncio.sleep(PAUSE_S)

    async def _exchange(self, stack: AsyncExitStack) -> AbstractExchange:
        connection = await stack.enter_async_context(
            open_amqp(self._harness.services.amqp_url, timeout_s=PATIENCE_S, name="chaos (garbage)")
        )
        channel = await connection.channel()
        return await channel.get_exchange(JOBS_EXCHANGE, ensure=False)

    async def _publish(self, exchange: AbstractExchange, number: int) -> None:
        kind = self._rng.choice(KINDS)
        job_id = new_job_id()
        message = kind(f"garbage {number}", job_id)
        async with asyncio.timeout(PATIENCE_S):
            await exchange.publish(message, routing_key=self._harness.pool, mandatory=True)
        self.sent.add(message.body)
        if kind in NAMED:
            self.named.add(job_id)


def _message(body: bytes, **properties: Any) -> Message:
    return Message(body, delivery_mode=DeliveryMode.PERSISTENT, **properties)


def _text(name: str, _: str) -> Message:
    return _message(f"{name} is not JSON {{".encode())


def _bytes(name: str, _: str) -> Message:
    return _message(name.encode() + b"\xff\xfe\x00\x80")


def _without_id(name: str, _: str) -> Message:
    return _message(orjson.dumps({"body": {"prompt": name}, "endpoint": "/v1/completions"}))


def _headers(name: str, _: str) -> Message:
    nested: dict[str, Any] = {
        "list": [1, "two", {"three": 3.5}],
        "text": "é" * 200,
        "none": None,
        "large": "x" * 60_000,
    }
    return _message(name.encode(), headers=nested, priority=9, correlation_id="c", content_type="text/plain")


def _bad_endpoint(name: str, job_id: str) -> Message:
    body = {"id": job_id, "endpoint": "/v1/garbage", "body": {"prompt": name}}
    return _message(orjson.dumps(body), message_id=job_id)


def _only_a_message_id(name: str, job_id: str) -> Message:
    return _message(f"{name}: its id is in a property only".encode(), message_id=job_id)


NAMED = (_bad_endpoint, _only_a_message_id)
"""The messages that name a job."""

KINDS: tuple[Callable[[str, str], Message], ...] = (_text, _bytes, _without_id, _headers, *NAMED)
