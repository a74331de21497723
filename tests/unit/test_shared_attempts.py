"""While a service hangs, those who wait for it share one attempt instead of making theirs one by one."""

from __future__ import annotations

import asyncio

import pytest

from inferfleet.producer.openai.models import Models
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.wire.rabbitmq.publishing import _Attempts  # pyright: ignore[reportPrivateUsage]


async def test_requests_share_one_reading_of_the_heartbeats_and_its_failure() -> None:
    readings = 0

    async def read() -> list[Heartbeat]:
        nonlocal readings
        readings += 1
        await asyncio.sleep(0)
        raise ServiceUnreachableError("Redis does not answer")

    models = Models(read)
    answers = await asyncio.gather(*(models.list() for _ in range(5)), return_exceptions=True)
    with pytest.raises(ServiceUnreachableError):
        await models.list()

    assert [type(answer) for answer in answers] == [ServiceUnreachableError] * 5
    assert readings == 1


async def test_who_waits_for_an_attempt_that_fails_makes_none() -> None:
    attempts = _Attempts()
    made: list[int] = []

    async def attempt(number: int, *, fails: bool = True) -> None:
        async with attempts.turn():
            made.append(number)
            await asyncio.sleep(0)
            if fails:
                raise ServiceUnreachableError("RabbitMQ does not answer")

    answers = await asyncio.gather(*(attempt(number) for number in range(5)), return_exceptions=True)
    await attempt(5, fails=False)

    assert [type(answer) for answer in answers] == [ServiceUnreachableError] * 5
    assert made == [0, 5]


async def test_who_waits_for_an_attempt_that_is_cancelled_makes_one() -> None:
    attempts = _Attempts()
    began, made = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        async with attempts.turn():
            began.set()
            await asyncio.Event().wait()

    async def attempt() -> None:
        async with attempts.turn():
            made.set()

    hanging = asyncio.create_task(hang())
    await began.wait()
    waiting = asyncio.create_task(attempt())
    await asyncio.sleep(0)
    hanging.cancel()
    await waiting

    assert made.is_set()
