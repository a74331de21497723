"""Connections to Redis, without redis-py's harmful defaults.

redis-py sends a command up to ten times after a timeout, which doubles an ``XADD``; its pool raises at once
when it is exhausted; its socket timeout of 5 s ends a longer blocking read. Here nothing is sent again
without the caller's knowledge (``wire.redis.pipeline`` repeats only what is safe to repeat), the pool waits,
and blocking reads have their own client.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from inferfleet.schemas.errors import ConfigurationError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.wire.address import QUOTING, current_url, is_file, redacted, without_secrets
from inferfleet.wire.home import Home
from inferfleet.wire.redis import refusals
from inferfleet.wire.redis.access import Access, check_access
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.cluster import ClusterClient
from inferfleet.wire.redis.cluster_pipeline import ClusterPipeline
from inferfleet.wire.redis.eviction import refuse_eviction
from inferfleet.wire.redis.outages import tell_ends
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.sentinel import sentinel_pool
from inferfleet.wire.redis.topology import TopologyKind, topology_of
from inferfleet.wire.redis.url import check_connection, connection_options
from inferfleet.wire.tasks import to_its_end

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 5.0
"""How long a reply may take before the connection counts as broken."""


Client = aioredis.Redis | ClusterClient
"""A client of a single server, of the master that Sentinels name, or of a cluster."""

ClientT = TypeVar("ClientT", bound=Client)


def redis_client(url: str, *, connections: int = 8, socket_timeout_s: float = SOCKET_TIMEOUT_S) -> Client:
    """Make a client, which connects at its first use.

    A client for blocking reads needs a ``socket_timeout_s`` that is longer than they block.

    Raises:
        ConfigurationError: The URL is invalid.

    """
    address = current_url(url)
    topology = topology_of(address)
    simple = [address] if topology is None else list(topology.urls)
    try:
        options: dict[str, Any] = {}
        for one in simple:
            options = connection_options(one)
        if is_file(url) and _credentials(address)[1] is not None:
            options["credential_provider"] = _FileCredentials(url)
            simple = [_without_credentials(one) for one in simple]
        options |= {
            "max_connections": connections,
            "timeout": None,
            "socket_timeout": socket_timeout_s,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
            "health_check_interval": 0,
            "retry": Retry(NoBackoff(), 0),
        }
        if topology is not None and topology.kind is TopologyKind.CLUSTER:
            return ClusterClient(simple, options)
        pool: aioredis.BlockingConnectionPool = (
            aioredis.BlockingConnectionPool.from_url(simple[0], **options)
            if topology is None
            else sentinel_pool(simple, service=topology.service, login=topology.login, **options)
        )
    except ValueError:
        # Not chained: the error may quote a part of the password.
        raise ConfigurationError(
            f"INFERFLEET_REDIS_URL is not an address like redis://:password@host:6379/0; {QUOTING}"
        ) from None
    tell_ends(pool)
    check_connection(pool)
    return aioredis.Redis.from_pool(pool)


@asynccontextmanager
async def closing_redis(client: ClientT) -> AsyncGenerator[ClientT]:
    """Close the client at the end of the block, even if the closing is cancelled."""
    try:
        yield client
    finally:
        await to_its_end(client.aclose())


@asynccontextmanager
async def open_redis(
    url: str,
    *,
    connections: int = 8,
    access: Access | None = None,
    clock: RedisClock | None = None,
    patience_s: float = 0.0,
) -> AsyncGenerator[Client]:
    """Connect, and yield the client once Redis answers and grants what is needed; see ``reach_redis``."""
    async with closing_redis(redis_client(url, connections=connections)) as client:
        await reach_redis(client, url, access=access, clock=clock, patience_s=patience_s)
        yield client


@asynccontextmanager
async def open_store(
    url: str, *, access: Access, clock: RedisClock, patience_s: float, allow_eviction: bool
) -> AsyncGenerator[Client]:
    """Connect a process that relies on Redis: require that Redis grants its rights, and evicts no keys.

    Raises:
        ServiceUnreachableError: Nothing answers at the address.
        ServiceRefusedError: Redis refuses a right that the process needs.
        ConfigurationError: Redis may evict keys, and that is not allowed.

    """
    async with open_redis(url, access=access, clock=clock, patience_s=patience_s) as client:
        for server in servers(client):
            await refuse_eviction(server, allowed=allow_eviction)
        yield client


def servers(client: Client) -> list[aioredis.Redis]:
    """Return a client of each server that holds a part of the keys."""
    return [client.node(node) for node in client.masters] if isinstance(client, ClusterClient) else [client]


async def reach_redis(
    client: Client,
    url: str,
    *,
    access: Access | None = None,
    clock: RedisClock | None = None,
    patience_s: float,
) -> None:
    """Make sure that Redis answers and grants what is needed. Wait for ``patience_s`` if a problem may pass.

    Raises:
        ServiceUnreachableError: Nothing answers at the address.
        ServiceRefusedError: Redis refuses a right that the process needs.

    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(_passes),
        wait=wait_random_exponential(multiplier=0.1, max=2.0),
        stop=stop_after_delay(patience_s),
        before_sleep=_log_first,
        reraise=True,
    ):
        with attempt:
            await check_redis(client, url, access=access, clock=clock)


def _log_first(attempt: RetryCallState) -> None:
    """Log an outage once, however many attempts it takes."""
    if attempt.attempt_number == 1 and attempt.outcome is not None:
        logger.warning("%s; trying again", attempt.outcome.exception())


def _passes(error: BaseException) -> bool:
    if isinstance(error, ServiceRefusedError):
        return error.passing
    return isinstance(error, ServiceUnreachableError)


async def check_redis(
    client: Client, url: str, *, access: Access | None = None, clock: RedisClock | None = None
) -> None:
    """Check that Redis answers, and grants ``access`` if that is given; set the clock to Redis' time.

    All masters of a cluster are checked.

    Raises:
        ServiceUnreachableError: Nothing answers at the address.
        ServiceRefusedError: Redis refuses a right that the process needs.

    """
    where = f"Redis at {redacted(url)}"
    try:
        if not isinstance(client, ClusterClient):
            await _check_server(client, access, clock, where=where)
            return
        await client.refresh()
        for node in client.masters:
            at_node = f"the node {node} of {where}"
            await _check_server(
                client.node(node), access, clock, where=at_node, serves=partial(client.serves, node)
            )
    except ServiceRefusedError:
        raise
    except (RedisError, OSError) as error:
        if refusals.is_refusal(error):
            raise refusals.refused(error, where=where) from error
        raise ServiceUnreachableError(
            f"Redis at {redacted(url)} does not answer ({without_secrets(str(error), url)}); "
            "check INFERFLEET_REDIS_URL, or start local services with `inferfleet local up`"
        ) from error


async def _check_server(
    client: aioredis.Redis,
    access: Access | None,
    clock: RedisClock | None,
    *,
    where: str,
    serves: Callable[[str], bool] | None = None,
) -> None:
    if access is None:
        await client.ping()
    else:
        await check_access(client, access, clock=clock or RedisClock(), where=where, serves=serves)


def command_pipeline(
    client: Client,
    *,
    patience_s: float | None,
    clock: RedisClock | None = None,
    home: Home | None = None,
) -> CommandPipeline:
    """Make the pipeline of a client. See ``CommandPipeline``."""
    kind: Any = ClusterPipeline if isinstance(client, ClusterClient) else CommandPipeline
    pipeline: CommandPipeline = kind(client, patience_s=patience_s, clock=clock, home=home)
    return pipeline


class _FileCredentials(CredentialProvider):
    """The credentials in a file that holds a URL, which each connection reads again."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return the user, if there is one, and the password."""
        user, password = _credentials(current_url(self._url))
        return (user, password or "") if user else (password or "",)


def _credentials(url: str) -> tuple[str, str | None]:
    """Return the user and password, from before the host or from the options, as redis-py does."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    user = unquote(parts.username or "") or options.get("username", "")
    return user, unquote(parts.password) if parts.password else options.get("password")


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    options = [
        (name, value) for name, value in parse_qsl(parts.query) if name not in {"username", "password"}
    ]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(options)).geturl()
