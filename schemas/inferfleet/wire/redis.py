"""Connections to Redis, with the defaults that bite switched off.

redis-py re-sends a command up to ten times after a timeout, which doubles an ``XADD``; its pool raises
at once when it is exhausted; its 5 s socket timeout kills a longer blocking read. Here nothing is
re-sent behind the caller's back (``wire.pipeline`` repeats what is safe to repeat), the pool waits, and
blocking reads get a client of their own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError

from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.wire.address import current_url, is_file, redacted, without_secrets

SOCKET_TIMEOUT_S = 5.0
"""How long one answer may take before the connection counts as broken."""


def redis_client(
    url: str, *, connections: int = 8, socket_timeout_s: float = SOCKET_TIMEOUT_S
) -> aioredis.Redis:
    """Make a client. It connects on first use.

    A client for blocking reads needs a ``socket_timeout_s`` longer than they block.

    Raises:
        ConfigurationError: The URL cannot be one.

    """
    options: dict[str, Any] = {}
    address = current_url(url)
    try:
        if is_file(url) and urlsplit(address).password is not None:
            options["credential_provider"] = _FileCredentials(url)
            address = _without_credentials(address)
        pool = aioredis.BlockingConnectionPool.from_url(
            address,
            max_connections=connections,
            timeout=None,
            socket_timeout=socket_timeout_s,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 0),
            **options,
        )
    except ValueError:
        # Not chained: it may quote a part of the password.
        raise ConfigurationError(
            "INFERFLEET_REDIS_URL is not an address like redis://:password@host:6379/0"
        ) from None
    return aioredis.Redis.from_pool(pool)


@asynccontextmanager
async def open_redis(url: str, *, connections: int = 8) -> AsyncGenerator[aioredis.Redis]:
    """Connect and check that Redis answers.

    Raises:
        ServiceUnreachableError: Nothing answers at the address, or the password is refused.

    """
    client = redis_client(url, connections=connections)
    try:
        await check_redis(client, url)
        yield client
    finally:
        await client.aclose()


async def check_redis(client: aioredis.Redis, url: str) -> None:
    """Ping, and say plainly what is wrong when there is no answer."""
    try:
        await client.ping()
    except (AuthenticationError, AuthorizationError) as error:
        raise ServiceUnreachableError(
            f"Redis at {redacted(url)} refuses the credentials; check the password in INFERFLEET_REDIS_URL"
        ) from error
    except (RedisError, OSError) as error:
        raise ServiceUnreachableError(
            f"Redis at {redacted(url)} does not answer ({without_secrets(str(error), url)}); "
            "check INFERFLEET_REDIS_URL, or start local services with `inferfleet local up`"
        ) from error


class _FileCredentials(CredentialProvider):
    """The credentials in a file that holds a URL, as they are when a connection is made."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """User, if there is one, and password."""
        parts = urlsplit(current_url(self._url))
        password = unquote(parts.password or "")
        return (unquote(parts.username), password) if parts.username else (password,)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
