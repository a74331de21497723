"""Who gets in, and how the others are told."""

from __future__ import annotations

from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika.exceptions import InvalidFrameError, ProbableAuthenticationError
from tests.contract.conftest import Inbox
from yarl import URL

from inferfleet.local.services import Services


async def test_a_wrong_password_is_refused_as_such(contract_services: Services) -> None:
    with pytest.raises(ProbableAuthenticationError, match="ACCESS_REFUSED"):
        await _refused(_with(contract_services, password="wrong"))


async def test_an_unknown_user_is_refused_as_such(contract_services: Services) -> None:
    with pytest.raises(ProbableAuthenticationError, match="ACCESS_REFUSED"):
        await _refused(_with(contract_services, user="nobody"))


async def test_an_unknown_virtual_host_is_refused(contract_services: Services) -> None:
    # aiormq does not pass on the code and the text (530, NOT_ALLOWED), only that it was not let in.
    with pytest.raises(InvalidFrameError, match=r"Connection\.Close"):
        await _refused(contract_services.amqp_url + "elsewhere")


async def test_a_robust_connection_consumes(contract_services: Services, name: str) -> None:
    async with await aio_pika.connect_robust(contract_services.amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, durable=True)
        inbox = Inbox()
        await queue.consume(inbox)
        await channel.default_exchange.publish(aio_pika.Message(b"x"), name, mandatory=True)
        (message,) = await inbox.wait_for(1)
        assert message.body == b"x"
        await message.ack()


async def _refused(url: str) -> None:
    """Connect, and close the connection, since aio-pika would do that in whatever loop runs by then."""
    connection = aio_pika.Connection(URL(url))
    try:
        await connection.connect()
    finally:
        await connection.close()


def _with(services: Services, *, user: str | None = None, password: str | None = None) -> str:
    url = urlsplit(services.amqp_url)
    netloc = f"{user or url.username}:{password or url.password}@{url.hostname}:{url.port}"
    return url._replace(netloc=netloc).geturl()
