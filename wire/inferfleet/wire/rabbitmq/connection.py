"""Opens connections to RabbitMQ, and does not reopen them when they break."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import aio_pika
from aio_pika.exceptions import AMQPError
from yarl import URL

from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.wire.address import current_url, one_each, redacted
from inferfleet.wire.rabbitmq.errors import (
    NotLetInError,
    UnusableCertificatesError,
    connection_errors,
    no_answer,
    not_let_in,
    unusable_certificates,
    words,
)
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

    def __init__(self, url: URL, *, address: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.stream = FrameStream(address)
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

    The URL may name several hosts, and a host may have several addresses: all are tried, in random order, so
    that a fleet spreads over the nodes of a cluster. ``timeout_s`` is for all of them.

    Raises:
        ServiceUnreachableError: No broker answers, or all that do refuse the login.
        ConfigurationError: The URL is invalid.

    """
    url = current_url(url)
    with connection_errors(url):
        connection = await _connected(url, timeout_s=timeout_s, name=name)
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


async def _connected(url: str, *, timeout_s: float, name: str) -> Connection:
    """Connect to the first address that lets us in."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    async with asyncio.timeout_at(deadline):
        places = await _places(url)
    failures: list[str] = []
    refusal: NotLetInError | None = None
    for tried, (address, host) in enumerate(places):
        # A node that accepts connections and does not answer leaves time for the others.
        share_s = (deadline - loop.time()) / (len(places) - tried)
        try:
            with connection_errors(url):
                return await _connected_to(host, address, url=url, timeout_s=share_s, name=name)
        except ServiceUnreachableError as error:
            if len(places) == 1 or isinstance(error, UnusableCertificatesError):
                raise
            place = address if host.port is None else f"{address}:{host.port}"
            failures.append(f"{place}: {words(error.__cause__ or error, url)}")
            refusal = error if isinstance(error, NotLetInError) else refusal
    raise refusal or no_answer(url, "; ".join(failures))


async def _places(url: str) -> list[tuple[str, URL]]:
    """Return what to try, in random order: each address of each host, with the URL of that host."""
    hosts = [_checked(URL(one)) for one in one_each(url, setting="INFERFLEET_AMQP_URL")]
    found = await asyncio.gather(*map(_addresses, hosts))
    places = [(address, host) for host, addresses in zip(hosts, found, strict=True) for address in addresses]
    random.shuffle(places)
    return places


async def _addresses(host: URL) -> set[str]:
    """Return the addresses of a host's name; the name itself if it has none now, or asyncio should choose."""
    name = host.host
    if not name:
        raise ValueError("no host")
    if "happy_eyeballs_delay" in host.query or _is_address(name):
        return {name}
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, host.port, type=socket.SOCK_STREAM)
    except OSError:
        return {name}
    return {str(place[0]) for *_, place in found}


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


async def _connected_to(host: URL, address: str, *, url: str, timeout_s: float, name: str) -> Connection:
    if "heartbeat" not in host.query:
        host = host.update_query(heartbeat=HEARTBEAT_S)
    connection = Connection(host, address=address, client_properties={"connection_name": name})
    try:
        await connection.connect(timeout=timeout_s)
    except BaseException as error:
        # The connection may be open nevertheless: aio-pika forgets one that is cancelled while it is opened.
        connection.stream.abort()
        if isinstance(error, OSError) and (problem := await asyncio.to_thread(_certificates_problem, host)):
            raise unusable_certificates(url, problem) from error
        if not isinstance(error, AMQPError) or connection.stream.closed_with is None:
            raise
        # aiormq does not pass on the reason, and reports some reasons as an invalid frame.
        code, reason = connection.stream.closed_with
        if code == CONNECTION_FORCED:
            raise ServiceUnreachableError(
                f"RabbitMQ at {redacted(url)} closes its connections ({reason}); it may be shutting down"
            ) from error
        raise not_let_in(url, reason) from error
    return connection


def _certificates_problem(host: URL) -> str | None:
    """Say what is wrong with the files that a URL names. aiormq's own error names none of them."""
    if host.scheme != "amqps":
        return None
    files = {
        name: host.query[name] for name in ("cafile", "capath", "certfile", "keyfile") if name in host.query
    }
    try:
        context = ssl.create_default_context(cafile=files.get("cafile"), capath=files.get("capath"))
        if certificate := files.get("certfile"):
            context.load_cert_chain(certificate, files.get("keyfile"))
    except OSError as error:
        return f"{', '.join(f'{name}={path}' for name, path in files.items())}: {error}"
    return None


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
