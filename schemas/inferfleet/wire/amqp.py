"""Connections to RabbitMQ, and the exchanges and queues of the fleet.

Declares what ``schemas.names`` names. What to publish or consume is decided by the callers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue
from aio_pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelInvalidStateError,
    ChannelPreconditionFailed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from pamqp.commands import Basic
from pydantic_core import to_json
from yarl import URL

from inferfleet.schemas import names
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.job import Job
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.wire.address import current_url, redacted, without_secrets
from inferfleet.wire.stream import FrameStream

HEARTBEAT_S = 20
"""How soon a cut-off peer is noticed: after two missed heartbeats. A ``heartbeat`` in the URL wins."""

_SECONDS = frozenset({"heartbeat", "timeout"})

MAX_SECONDS = 65_534

PARAMETERS = frozenset(
    {"auth", "cadata", "cafile", "capath", "certfile", "keyfile", "name", "no_verify_ssl", *_SECONDS}
    | {"happy_eyeballs_delay", "interleave"}
)
"""What may stand in the query of an AMQP URL: what aiormq and aio-pika look at."""

CLOSE_TIMEOUT_S = 10.0
"""How long the broker may take to let us go. Out of memory or disk, it reads nothing from publishers."""

# StopAsyncIteration is what aiormq raises when the other end hangs up during the handshake: a broker that
# is just starting, or a load balancer with nothing behind it.
_NO_ANSWER = (
    AMQPConnectionError,
    ChannelInvalidStateError,
    OSError,
    asyncio.IncompleteReadError,
    StopAsyncIteration,
)


@contextmanager
def connection_errors(url: str) -> Generator[None]:
    """Turn what aio-pika raises while connecting and declaring into errors of ours.

    Raises:
        ServiceUnreachableError: RabbitMQ does not answer, or refuses us.
        ConfigurationError: The URL cannot be one.

    """
    try:
        yield
    except (AuthenticationError, ProbableAuthenticationError, InvalidFrameError) as error:
        # aiormq reads RabbitMQ's answer to an unknown virtual host as an invalid frame.
        raise ServiceUnreachableError(
            f"RabbitMQ at {redacted(url)} refuses the credentials or the virtual host; "
            "check user, password and vhost in INFERFLEET_AMQP_URL"
        ) from error
    except _NO_ANSWER as error:
        raise ServiceUnreachableError(
            f"RabbitMQ at {redacted(url)} does not answer ({_words(error, url)}); "
            "check INFERFLEET_AMQP_URL, or start local services with `inferfleet local up`"
        ) from error
    except AMQPError as error:
        # No permission to declare, for example.
        raise ServiceUnreachableError(f"RabbitMQ at {redacted(url)} refuses: {_words(error, url)}") from error
    except ValueError:
        # Not chained: it may quote a part of the password.
        raise ConfigurationError(
            "INFERFLEET_AMQP_URL is not an address like amqp://user:password@host:5672/vhost"
        ) from None


def _words(error: BaseException, url: str) -> str:
    return without_secrets(str(error), url) or type(error).__name__


class Connection(aio_pika.Connection):
    """aio-pika's connection, some frames of which its owner reads and writes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stream = FrameStream()
        self.kwargs["transport_factory"] = self.stream

    @property
    def frame_max(self) -> int:
        """The size of the largest frame, in bytes, that was agreed with the broker."""
        assert self.transport is not None  # noqa: S101 - open_amqp gives out connections that are open
        return self.transport.connection.connection_tune.frame_max


@asynccontextmanager
async def open_amqp(url: str, *, timeout_s: float, name: str) -> AsyncGenerator[Connection]:
    """Connect once. The connection is not restored when it breaks: its owner decides what then.

    Raises:
        ServiceUnreachableError: Nothing answers, or the credentials are refused.

    """
    url = current_url(url)
    with connection_errors(url):
        address = _checked(URL(url))
        if "heartbeat" not in address.query:
            address = address.update_query(heartbeat=HEARTBEAT_S)
        connection = await aio_pika.connect(
            address,
            timeout=timeout_s,
            client_properties={"connection_name": name},
            connection_class=Connection,
        )
    try:
        yield connection
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connection.close()
        except TimeoutError:
            connection.stream.abort()


def _checked(address: URL) -> URL:
    """The address itself. What aio-pika would not look at must not be taken for a setting that works.

    Raises:
        ConfigurationError: It has a parameter that means nothing, or one that should be a number.

    """
    for name, value in address.query.items():
        if name not in PARAMETERS:
            # A name that is none may be the rest of a password with a question mark in it.
            named = repr(name) if name.isidentifier() else "that is no name"
            raise ConfigurationError(
                f"INFERFLEET_AMQP_URL has a parameter {named}{did_you_mean(name, PARAMETERS)}; "
                f"there are {', '.join(sorted(PARAMETERS))}"
            )
        if name in _SECONDS and not (value.isdecimal() and int(value) <= MAX_SECONDS):
            # aiormq would switch the heartbeat off.
            raise ConfigurationError(
                f"INFERFLEET_AMQP_URL: {name} must be a whole number of seconds up to {MAX_SECONDS}"
            )
    return address


async def declare_exchanges(channel: AbstractChannel) -> AbstractExchange:
    """Declare the three exchanges; return the one that jobs go to."""
    jobs = await channel.declare_exchange(names.JOBS_EXCHANGE, aio_pika.ExchangeType.DIRECT, durable=True)
    await channel.declare_exchange(names.DEAD_EXCHANGE, aio_pika.ExchangeType.DIRECT, durable=True)
    await channel.declare_exchange(names.CONTROL_EXCHANGE, aio_pika.ExchangeType.FANOUT, durable=True)
    return jobs


async def declare_pool(channel: AbstractChannel, pool: str, settings: ServiceSettings) -> AbstractQueue:
    """Declare a pool's queue and its dead-letter queue, and bind both. Idempotent.

    Raises:
        ConfigurationError: The queue exists with other arguments.

    """
    await declare_exchanges(channel)
    try:
        queue = await channel.declare_queue(
            names.job_queue(pool), durable=True, arguments=queue_arguments(settings)
        )
    except ChannelPreconditionFailed as error:
        raise ConfigurationError(
            f"the queue {names.job_queue(pool)} exists with other arguments than queue_type="
            f"{settings.queue_type} and queue_max_length={settings.queue_max_length}: set "
            "INFERFLEET_QUEUE_TYPE and INFERFLEET_QUEUE_MAX_LENGTH as they were, or delete the queue "
            f"once it is empty (RabbitMQ says: {error})"
        ) from error
    await queue.bind(names.JOBS_EXCHANGE, routing_key=pool)
    dead = await channel.declare_queue(names.dead_queue(pool), durable=True)
    await dead.bind(names.DEAD_EXCHANGE, routing_key=pool)
    return queue


def queue_arguments(settings: ServiceSettings) -> dict[str, Any]:
    """The arguments of a pool's queue. A quorum queue refuses ``x-max-priority``."""
    arguments: dict[str, Any] = {}
    match settings.queue_type:
        case QueueType.CLASSIC:
            arguments["x-max-priority"] = names.MAX_PRIORITY
        case QueueType.QUORUM:
            # Attempts are counted by us; RabbitMQ 4 would drop a job after 20 returns by itself.
            arguments |= {"x-queue-type": "quorum", "x-delivery-limit": -1}
    if settings.queue_max_length is not None:
        arguments |= {"x-max-length": settings.queue_max_length, "x-overflow": "reject-publish"}
    return arguments


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message as it goes out. aio-pika's own message objects cost more than all of the rest of it."""

    body: bytes
    properties: Basic.Properties


def job_message(job: Job, *, reply_to: str) -> OutgoingMessage:
    """Wrap a job as the AMQP message that the contract describes."""
    return OutgoingMessage(
        to_json(job, exclude_none=True, inf_nan_mode="null"),
        Basic.Properties(
            message_id=job.id,
            priority=int(job.priority),
            message_type=names.JOB_MESSAGE_TYPE,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT.value,
            reply_to=reply_to,
        ),
    )
