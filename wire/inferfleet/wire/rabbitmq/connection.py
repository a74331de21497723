"""Opens connections to RabbitMQ, and does not reopen them when they break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.exceptions import AMQPError
from yarl import URL

from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.wire.address import current_url, redacted
from inferfleet.wire.rabbitmq.errors import connection_errors, not_let_in
from inferfleet.wire.rabbitmq.frames import CONNECTION_FORCED
from inferfleet.wire.rabbitmq.stream import FrameStream

HEARTBEAT_S = 20
"""The heartbeat interval: an unreachable peer is noticed after two of them. A ``heartbeat`` in the URL
overrides
it."""

_SECONDS = frozenset({"heartbeat", "timeout"})

MAX_SECONDS = 65_534

PARAMETERS = frozenset(
    {"auth", "cadata", "cafile", "capath", "certfile", "keyfile", "name", "no_verify_ssl", *_SECONDS}
    | {"happy_eyeballs_delay", "interleave"}
)
"""The allowed parameters of an AMQP URL: those that aiormq and aio-pika read."""

CLOSE_TIMEOUT_S = 10.0
"""How long the broker may take to close a connection. Without memory or disk, it does not read publishers."""


class Connection(aio_pika.Connection):
    """aio-pika's connection, with direct access to some of its frames."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stream = FrameStream()
        self.kwargs["transport_factory"] = self.stream

    def __del__(self) -> None:
        """Do nothing: ``open_amqp`` has closed or aborted the connection.

        aio-pika would close one that was never opened in a task of whatever loop runs by then, if any.
        """

    @property
    def frame_max(self) -> int:
        """The largest frame size that was negotiated with the broker, in bytes."""
        assert self.transport is not None  # noqa: S101 - open_amqp gives out connections that are open
        return self.transport.connection.connection_tune.frame_max

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as this side knows.

        aio-pika's ``is_closed`` only says whether the owner has closed it.
        """
        return (
            self.transport is not None and not self.transport.connection.is_closed and not self.stream.closing
        )


@asynccontextmanager
async def open_amqp(url: str, *, timeout_s: float, name: str) -> AsyncGenerator[Connection]:
    """Connect once. When the connection breaks, its owner decides what to do.

    Raises:
        ServiceUnreachableError: The broker does not answer, or refuses the login.

    """
    url = current_url(url)
    with connection_errors(url):
        address = _checked(URL(url))
        if "heartbeat" not in address.query:
            address = address.update_query(heartbeat=HEARTBEAT_S)
        connection = Connection(address, client_properties={"connection_name": name})
        try:
            await connection.connect(timeout=timeout_s)
        except BaseException as error:
            # The connection may be open nevertheless: aio-pika forgets one that is cancelled while it is
            # opened.
            connection.stream.abort()
            if not isinstance(error, AMQPError) or connection.stream.closed_with is None:
                raise
            # aiormq does not pass on the reason, and reports some reasons as an invalid frame.
            code, reason = connection.stream.closed_with
            if code == CONNECTION_FORCED:
                raise ServiceUnreachableError(
                    f"RabbitMQ at {redacted(url)} closes its connections ({reason}); it may be shutting down"
                ) from error
            raise not_let_in(url, reason) from error
    assert connection.transport is not None  # noqa: S101 - it is connected
    connection.stream.watch(connection.transport.connection.connection_tune.heartbeat)
    try:
        yield connection
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connection.close()
        except TimeoutError:
            connection.stream.abort()
        except BaseException:
            # The caller was cancelled, so do not wait for the broker.
            connection.stream.abort()
            raise


def _checked(address: URL) -> URL:
    """Check the parameters of an address, because aio-pika ignores unknown ones.

    Raises:
        ConfigurationError: A parameter is unknown, or should be a number.

    """
    for name, value in address.query.items():
        if name not in PARAMETERS:
            # An unknown name may be the rest of a password with a question mark in it.
            named = repr(name) if name.isidentifier() else "that is no name"
            raise ConfigurationError(
                f"INFERFLEET_AMQP_URL has a parameter {named}{did_you_mean(name, PARAMETERS)}; "
                f"there are {', '.join(sorted(PARAMETERS))}"
            )
        if name in _SECONDS and not (value.isdecimal() and int(value) <= MAX_SECONDS):
            # aiormq would turn the heartbeat off.
            raise ConfigurationError(
                f"INFERFLEET_AMQP_URL: {name} must be a whole number of seconds up to {MAX_SECONDS}"
            )
    return address
