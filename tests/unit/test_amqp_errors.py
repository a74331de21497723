"""What aio-pika and aiormq raise becomes an error of ours."""

from __future__ import annotations

import asyncio

import pytest
from aiormq.base import FutureStore

from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.wire.rabbitmq.errors import connection_errors

URL = "amqp://guest:guest@127.0.0.1:1/"


async def test_a_call_that_aiormq_gives_up_for_no_known_reason_is_unanswered() -> None:
    store = FutureStore(loop=asyncio.get_running_loop())
    call = store.create_future()
    store.reject_all(None)
    with pytest.raises(ServiceUnreachableError, match="closed the connection"), connection_errors(URL):
        await call


def test_a_fault_of_our_own_is_not_taken_for_one_of_the_broker() -> None:
    with pytest.raises(LookupError), connection_errors(URL):
        raise LookupError
