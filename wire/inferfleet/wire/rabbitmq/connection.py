"""Connections to RabbitMQ, and the exchanges and queues of the fleet.

Declares what ``schemas.names`` names. What to publish or consume is decided by the callers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aio_pika
import aiormq.abc
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import (
    AMQPChannelError,
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
from inferfleet.schemas.errors import (
    ConfigurationError,
    InferfleetError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.job import Job
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.wire.address import current_url, redacted, without_secrets
from inferfleet.wire.rabbitmq.frames import CONNECTION_FORCED
from inferfleet.wire.rabbitmq.stream import FrameStream

HEARTBEAT_S = 20
"""How soon a cut-off peer is noticed: after two missed heartbeats. A ``heartbeat`` in the URL wins."""

_SECONDS = frozenset({"heartbeat", "timeout"})

MAX_SECONDS = 65_534

PARAMETERS = frozenset(
    {"auth", "cadata", "cafile", "capath", "certfile", "keyfile", "name", "no_verify_ssl", *_SECONDS}
    | {"happy_eyeballs_delay", "interleave"}
)
"""What may stand in the query of an AMQP URL: what aiormq and aio-pika look at."""

_PERSISTENT = aio_pika.DeliveryMode.PERSISTENT.value

CLOSE_TIMEOUT_S = 10.0
"""How long the broker may take to let us go. Out of memory or disk, it reads nothing from publishers."""

# StopAsyncIteration is what aiormq raises when the other end hangs up during the handshake: a broker that
# is just starting, or a load balancer with nothing behind it. RuntimeError is what it and aio-pika raise
# when the connection has ended between two calls.
_NO_ANSWER = (
    AMQPConnectionError,
    ChannelInvalidStateError,
    OSError,
    asyncio.IncompleteReadError,
    RuntimeError,
    StopAsyncIteration,
)


@contextmanager
def connection_errors(url: str) -> Generator[None]:
    """Turn what aio-pika raises while connecting and declaring into errors of ours.

    Raises:
        ServiceUnreachableError: RabbitMQ does not answer, or does not let us in.
        ServiceRefusedError: RabbitMQ let us in, and refuses what was asked.
        ConfigurationError: The URL cannot be one.

    """
    try:
        yield
    except InferfleetError:
        # Told already; some are connection errors to Python as well.
        raise
    except (AuthenticationError, ProbableAuthenticationError, InvalidFrameError) as error:
        raise _not_let_in(url, str(error)) from error
    except _NO_ANSWER as error:
        raise ServiceUnreachableError(
            f"RabbitMQ at {redacted(url)} does not answer ({_words(error, url)}); "
            "check INFERFLEET_AMQP_URL, or start local services with `inferfleet local up`"
        ) from error
    except AMQPChannelError as error:
        raise refused(f"RabbitMQ at {redacted(url)} refuses", error) from error
    except AMQPError as error:
        raise ServiceUnreachableError(
            f"RabbitMQ at {redacted(url)} breaks the protocol: {_words(error, url)}"
        ) from error
    except ValueError:
        # Not chained: it may quote a part of the password.
        raise ConfigurationError(
            "INFERFLEET_AMQP_URL is not an address like amqp://user:password@host:5672/vhost"
        ) from None


def _words(error: BaseException, url: str) -> str:
    if isinstance(error, StopAsyncIteration):
        # What aiormq makes of an end in the middle of the handshake.
        return "it closed the connection"
    return without_secrets(str(error), url) or type(error).__name__


def _not_let_in(url: str, reason: str) -> ServiceUnreachableError:
    """Say why the broker closed the connection before it was open."""
    return ServiceUnreachableError(
        f"RabbitMQ at {redacted(url)} refuses the credentials or the virtual host ({reason}); check user, "
        "password and vhost in INFERFLEET_AMQP_URL, and the broker's permissions and limits for them"
    )


def refused(what: str, error: BaseException) -> ServiceRefusedError:
    """Pass on the broker's reason for a refusal, and what to do if that can be known."""
    reason = ": ".join(str(part) for part in error.args if part is not None) or type(error).__name__
    advice = next((advice for word, advice in _ADVICE.items() if word in reason), "look at the broker's log")
    return ServiceRefusedError(f"{what}: {reason}; {advice}")


_ADVICE = {
    "message size": "send less, or raise max_message_size at the broker",
    "ACCESS_REFUSED": "give the user of INFERFLEET_AMQP_URL this permission (rabbitmqctl set_permissions)",
    "limit": "raise that limit at the broker",
}
"""What to do, by a word of the reason."""


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

    @property
    def alive(self) -> bool:
        """Whether it is open, as far as this end knows. aio-pika's ``is_closed`` is about its owner only."""
        return (
            self.transport is not None and not self.transport.connection.is_closed and not self.stream.closing
        )


@asynccontextmanager
async def open_amqp(url: str, *, timeout_s: float, name: str) -> AsyncGenerator[Connection]:
    """Connect once. The connection is not restored when it breaks: its owner decides what then.

    Raises:
        ServiceUnreachableError: Nothing answers, or we are not let in.

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
            # It may be open all the same: aio-pika forgets a connection that is cancelled as it is made.
            connection.stream.abort()
            if not isinstance(error, AMQPError) or connection.stream.closed_with is None:
                raise
            # aiormq does not pass the reason on, and takes some for an invalid frame.
            code, reason = connection.stream.closed_with
            if code == CONNECTION_FORCED:
                raise ServiceUnreachableError(
                    f"RabbitMQ at {redacted(url)} closes its connections ({reason}); it may be shutting down"
                ) from error
            raise _not_let_in(url, reason) from error
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
            # Whoever closes it was cancelled: nobody waits for the broker's goodbye.
            connection.stream.abort()
            raise


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


async def declare_exchanges(channel: AbstractChannel) -> None:
    """Declare the three exchanges.

    Raises:
        ConfigurationError: One exists with another type.

    """
    with _declaration_errors():
        for name, kind in (
            (names.JOBS_EXCHANGE, aio_pika.ExchangeType.DIRECT),
            (names.DEAD_EXCHANGE, aio_pika.ExchangeType.DIRECT),
            (names.CONTROL_EXCHANGE, aio_pika.ExchangeType.FANOUT),
        ):
            await channel.declare_exchange(name, kind, durable=True)


async def declare_pool(channel: AbstractChannel, pool: str, settings: ServiceSettings) -> AbstractQueue:
    """Declare a pool's queue and its dead-letter queue, and bind both. Idempotent.

    When this raises, the broker has closed the channel.

    Raises:
        ConfigurationError: A queue or an exchange exists with other arguments.
        ServiceRefusedError: The broker refuses: a permission is missing, or there are too many queues.

    """
    connection = (await channel.get_underlay_channel()).connection
    version = str(connection.server_properties.get("version", ""))
    await declare_exchanges(channel)
    with _declaration_errors():
        queue = await channel.declare_queue(
            names.job_queue(pool), durable=True, arguments=queue_arguments(settings, broker_version=version)
        )
        await queue.bind(names.JOBS_EXCHANGE, routing_key=pool)
        await _declare_dead_queue(connection, pool, settings.queue_type, version)
    return queue


async def declare_dead_letters(channel: AbstractChannel, pool: str, settings: ServiceSettings) -> None:
    """Declare a pool's dead-letter queue, and bind it, as ``declare_pool`` does."""
    connection = (await channel.get_underlay_channel()).connection
    version = str(connection.server_properties.get("version", ""))
    await declare_exchanges(channel)
    with _declaration_errors():
        await _declare_dead_queue(connection, pool, settings.queue_type, version)


async def _declare_dead_queue(
    connection: aiormq.abc.AbstractConnection, pool: str, queue_type: QueueType, version: str
) -> None:
    """Declare the dead-letter queue of a pool. A classic one that is there already is as good."""
    name, arguments = names.dead_queue(pool), _type_arguments(queue_type, version)
    channel = await connection.channel()
    try:
        await channel.queue_declare(name, durable=True, arguments=arguments)
    except ChannelPreconditionFailed as error:
        differs = _DIFFERENCE.search(str(error))
        if queue_type is QueueType.CLASSIC or differs is None or differs["argument"] != "x-queue-type":
            raise
        # Pools of quorum queues had classic ones for their dead letters at first.
        channel = await connection.channel()
        await channel.queue_declare(name, durable=True, arguments=_type_arguments(QueueType.CLASSIC, version))
    await channel.queue_bind(name, names.DEAD_EXCHANGE, routing_key=pool)
    await channel.close()


def queue_arguments(settings: ServiceSettings, *, broker_version: str) -> dict[str, Any]:
    """The arguments of a pool's queue, at a broker that says to have this version."""
    arguments = _type_arguments(settings.queue_type, broker_version)
    if settings.queue_type is QueueType.CLASSIC:
        # A quorum queue refuses it. It has two priorities in RabbitMQ 4.0 to 4.2, and all ten from 4.3 on.
        arguments["x-max-priority"] = names.MAX_PRIORITY
    if settings.queue_max_length is not None:
        arguments |= {"x-max-length": settings.queue_max_length, "x-overflow": "reject-publish"}
    return arguments


def _type_arguments(queue_type: QueueType, broker_version: str) -> dict[str, Any]:
    """What makes a queue one of this type, wherever it is declared.

    The type is always said: without it, the default of the virtual host or of the node counts. Attempts are
    counted by us, so a quorum queue must not count returns and drop a job: 20 are the limit from RabbitMQ 4
    on, unless it is -1. RabbitMQ 3 has no limit, and takes -1 as none at all.
    """
    arguments: dict[str, Any] = {"x-queue-type": queue_type.value}
    major, _, _ = broker_version.partition(".")
    if queue_type is QueueType.QUORUM and major.isdecimal() and int(major) >= 4:
        arguments["x-delivery-limit"] = -1
    return arguments


_DIFFERENCE = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>queue|exchange) '(?P<name>[^']*)'"
)


@contextmanager
def _declaration_errors() -> Generator[None]:
    """Say which queue or exchange has which other argument, and which setting it belongs to."""
    try:
        yield
    except ChannelPreconditionFailed as error:
        differs = _DIFFERENCE.search(str(error))
        if differs is None:
            raise refused("RabbitMQ refuses to declare a queue", error) from error
        argument, kind, name = differs["argument"], differs["kind"], differs["name"]
        setting = _SETTING_OF.get(argument)
        remedies = [f"set {setting} as it was"] if setting else []
        remedies.append(
            f"delete the {kind}{' once it is empty' if kind == 'queue' else ''}, so that it is made anew"
        )
        raise ConfigurationError(
            f"the {kind} {name} exists with other arguments than ours, {argument} (RabbitMQ says: {error}): "
            f"{', or '.join(remedies)}"
        ) from error


_SETTING_OF = {
    "x-queue-type": "INFERFLEET_QUEUE_TYPE",
    "x-max-priority": "INFERFLEET_QUEUE_TYPE",
    "x-max-length": "INFERFLEET_QUEUE_MAX_LENGTH",
    "x-overflow": "INFERFLEET_QUEUE_MAX_LENGTH",
}
"""Where an argument of a queue comes from."""


def exclusive_arguments() -> dict[str, Any]:
    """The arguments of a queue that belongs to one connection: it can only be classic."""
    return {"x-queue-type": QueueType.CLASSIC.value}


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
            delivery_mode=_PERSISTENT,
            reply_to=reply_to,
        ),
    )
