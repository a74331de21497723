"""Sends one request to an endpoint that a tenant has named, and reaches no address that it must not reach.

The address is checked where the connection is made, so no name can resolve to one address for the check and
another one for the connection. Each request has its own connection, follows no redirect, and reads no body.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from inferfleet.wire.transports import abort

Network = IPv4Network | IPv6Network
"""A network whose addresses may be reached although they are not public."""

Lookup = Callable[[str, int, int], list[tuple[int, str]]]
"""Resolves a host and port for a family of addresses. It blocks."""

NAT64: Final = ip_network("64:ff9b::/96")
"""Addresses of IPv6 behind which an address of IPv4 is."""

RESERVED: Final = tuple(
    ip_network(each)
    for each in (
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
        *("64:ff9b:1::/48", "3fff::/20", "5f00::/16"),
    )
)
"""Networks that are not public, although ``ipaddress`` of some version of Python says so. Clouds serve their
machines at some of the addresses."""

LOOKUPS: Final = 128
"""How many names are resolved at the same time. They have threads of their own, because some take long."""

PER_TENANT: Final = 16
"""How many names of one tenant are resolved at the same time: as many as it may have endpoints."""

MAX_INTERIM: Final = 8
"""How many interim responses (1xx) may come before the response."""

RECEIVE_BYTES: Final = 32_768
"""How much of an answer the kernel takes before it is read. Only its head is of interest."""

LOOKUP_S: Final = 5.0
"""How long the name of a new endpoint may take to resolve."""

_Question = tuple[str, int, int]
"""What ``Lookup`` is called with."""

_tenant: ContextVar[str] = ContextVar("_tenant")
"""For which tenant a name is resolved."""

SCHEMES: Final = ("http", "https")
"""What a URL may begin with. By http only networks are reached that the operator allows."""

MAX_URL: Final = 2048


class Sent(NamedTuple):
    """How a request ended: by the status of its response, or else by a failure.

    A failure says little on purpose, because the tenant reads it: nobody should explore a network by it.
    """

    status: int | None
    failure: str

    @property
    def accepted(self) -> bool:
        """Whether the endpoint has accepted the event."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """Whether the endpoint wants no more events."""
        return self.status == 410


class ForbiddenAddressError(OSError):
    """The endpoint has an address that must not be reached."""


class Sender:
    """Sends requests. ``allowed`` are networks that may be reached although they are not public."""

    def __init__(
        self,
        *,
        sessions: Mapping[str, aiohttp.ClientSession],
        resolver: AbstractResolver,
        allowed: Sequence[Network],
    ) -> None:
        self._sessions = sessions
        self._resolver = resolver
        self._allowed = allowed

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, *, allowed: Sequence[Network], timeout_s: float, lookup: Lookup | None = None
    ) -> AsyncGenerator[Sender]:
        """Send requests while the block runs, each of which takes at most ``timeout_s``."""
        threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="webhook-names")
        resolver = _Resolver(lookup or _look_up, threads)
        sessions: dict[str, aiohttp.ClientSession] = {}
        try:
            for scheme in SCHEMES:
                connector = aiohttp.TCPConnector(
                    resolver=resolver,
                    use_dns_cache=False,
                    force_close=True,
                    limit=0,
                    socket_factory=_socket_factory(allowed, public=scheme == "https"),
                )
                sessions[scheme] = aiohttp.ClientSession(
                    connector=connector,
                    response_class=_Response,
                    timeout=aiohttp.ClientTimeout(total=timeout_s),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                )
            yield cls(sessions=sessions, resolver=resolver, allowed=allowed)
        finally:
            for session in sessions.values():
                await session.close()
            threads.shutdown(wait=False, cancel_futures=True)

    async def send(self, url: str, *, headers: Mapping[str, str], body: bytes, tenant: str) -> Sent:
        """Send a request for a tenant, and return how it ended. Never raises."""
        _tenant.set(tenant)
        try:
            async with self._sessions[urlsplit(url).scheme].post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                # Whatever its body is, nobody reads it.
                response.close()
                accepted = 200 <= response.status < 300
                return Sent(response.status, "" if accepted else f"it answers {response.status}")
        except TimeoutError:
            return Sent(None, "it takes too long")
        except (aiohttp.ClientError, OSError, ValueError, UnicodeError) as error:
            return Sent(None, _failure(error))

    async def problem(self, url: str, *, tenant: str) -> str | None:
        """Return what is wrong with the URL of a tenant's endpoint, as its name resolves at the moment."""
        _tenant.set(tenant)
        if (wrong := _invalid(url)) is not None:
            return wrong
        parts = urlsplit(url)
        public = parts.scheme == "https"
        found: list[ResolveResult] = []
        with suppress(OSError, UnicodeError):
            async with asyncio.timeout(LOOKUP_S):
                found = await self._resolver.resolve(
                    parts.hostname or "", parts.port or 443, socket.AF_UNSPEC
                )
        if any(may_reach(each["host"], self._allowed, public=public) for each in found):
            return None
        return (
            "must resolve at the moment, and lead to a public address by https, or to a network that the "
            "operator allows (INFERFLEET_WEBHOOK_NETWORKS)"
        )


def may_reach(address: str, allowed: Sequence[Network], *, public: bool) -> bool:
    """Return whether an address is in an allowed network, or with ``public``, whether it is public.

    An address of IPv4 that is written as one of IPv6 counts as what it is.
    """
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped
        if found in NAT64:
            inner = IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            return may_reach(str(inner), allowed, public=public)
        public = public and not found.is_site_local and found.sixtofour is None
    if any(found in network for network in allowed):
        return True
    public = public and not any(found in network for network in RESERVED)
    return public and found.is_global and not found.is_multicast and not found.is_reserved


def _invalid(url: str) -> str | None:
    """Return what is wrong with the form of a URL."""
    if len(url) > MAX_URL:
        return f"must have at most {MAX_URL} characters"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in SCHEMES or not parts.hostname or port == 0 or not url.isascii():
        return "must be a URL that begins with https://"
    if not url.isprintable() or " " in url:
        return "has a character that no URL has"
    if parts.username is not None or parts.fragment:
        return "must have no user and no fragment"
    return None


def _failure(error: Exception) -> str:
    match error:
        case (
            aiohttp.ClientConnectorError(os_error=ForbiddenAddressError()) | aiohttp.ClientConnectorDNSError()
        ):
            # One text for both, or a tenant could ask for the names in the operator's network.
            return "it has no address that may be reached"
        case aiohttp.ClientSSLError():
            return "its certificate or TLS is not valid"
        case aiohttp.ClientConnectorError():
            return "it cannot be reached"
        case _:
            return "it gives no valid answer"


def _socket_factory(allowed: Sequence[Network], *, public: bool) -> Callable[[Any], socket.socket]:
    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not may_reach(address[0], allowed, public=public):
            raise ForbiddenAddressError("its address must not be reached")
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        made.setblocking(False)
        return made

    return make


class _Response(aiohttp.ClientResponse):
    """The head of a response."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Read the head, after a few interim responses, and close the connection.

        aiohttp reads any number of them, and nothing else runs while more have come already.
        """
        protocol = cast("ResponseHandler", connection.protocol)
        transport = connection.transport
        read, left = protocol.read, MAX_INTERIM + 1

        async def read_few() -> Any:
            nonlocal left
            if not left:
                raise aiohttp.ClientPayloadError("too many interim responses")
            left -= 1
            return await read()

        protocol.read = read_few  # type: ignore[method-assign]
        try:
            return await super().start(connection)
        finally:
            # Nobody reads the body, nor waits until the endpoint has ended TLS, too.
            if transport is not None:
                abort(transport)


class _Resolver(AbstractResolver):
    """Resolves names in threads of its own.

    A lookup lasts until its name server answers, although nobody waits any more. So a name is looked up once
    at a time, and each tenant has few lookups at the same time: slow names of one hold up no other.
    """

    def __init__(self, lookup: Lookup, threads: ThreadPoolExecutor) -> None:
        self._lookup = lookup
        self._threads = threads
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Those of each tenant, as long as somebody has or awaits one."""
        self._running: dict[_Question, asyncio.Future[list[tuple[int, str]]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Resolve a name, for the tenant for which this runs."""
        question = host, port, family
        if question not in self._running:
            turns = self._turns.setdefault(_tenant.get(), asyncio.Semaphore(PER_TENANT))
            await turns.acquire()
            if question in self._running:
                turns.release()
            else:
                self._start(question, turns)
        found = await asyncio.shield(self._running[question])
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, address in found
        ]

    def _start(self, question: _Question, turns: asyncio.Semaphore) -> None:
        def ended(running: asyncio.Future[list[tuple[int, str]]]) -> None:
            turns.release()
            del self._running[question]
            # Those who wait for it may all be gone by then.
            if not running.cancelled():
                running.exception()

        loop = asyncio.get_running_loop()
        self._running[question] = loop.run_in_executor(self._threads, self._lookup, *question)
        self._running[question].add_done_callback(ended)

    async def close(self) -> None:
        """Do nothing: whoever has made the threads ends them."""


def _look_up(host: str, port: int, family: int) -> list[tuple[int, str]]:
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    return [(kind, str(address[0])) for kind, _, _, _, address in found]
