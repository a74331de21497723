"""A client of the master that Sentinels name, by redis-py's own classes.

Each new connection asks the Sentinels for the master. A connection to a master that has become a replica ends
at its first refused write, like one that broke, and the next one leads to the new master.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import redis.asyncio as aioredis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

SENTINEL_TIMEOUT_S = 1.0
"""How long a Sentinel may take to answer before the next one is asked."""


class _Sentinels(Sentinel):
    """Sentinels that say why they name no master."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the host and port of the master.

        Raises:
            MasterNotFoundError: No Sentinel answers, or none knows a master that serves.
            redis.exceptions.AuthenticationError: A Sentinel refuses the login, and no other knows the master.

        """
        sentinels: list[Any] = self.sentinels
        problems: list[str] = []
        refusal: AuthenticationError | None = None
        for place, sentinel in enumerate(sentinels):
            try:
                masters = await sentinel.sentinel_masters()
            except AuthenticationError as error:
                refusal = error
            except (RedisConnectionError, RedisTimeoutError, OSError, RuntimeError) as error:
                problems.append(str(error))
            else:
                state = masters.get(service_name)
                if state is not None and self.check_master_state(state, service_name):
                    sentinels[0], sentinels[place] = sentinel, sentinels[0]
                    return str(state["ip"]), int(state["port"])
                problems.append("it is down" if state else f"they know {', '.join(masters) or 'none'}")
        if refusal is not None:
            raise refusal
        raise MasterNotFoundError(
            f"the Sentinels name no master {service_name!r}: {'; '.join(dict.fromkeys(problems))}"
        )


class SentinelPool(SentinelConnectionPool, aioredis.BlockingConnectionPool):
    """A pool of connections to the master that waits when it is exhausted, like that of a single server."""

    async def aclose(self) -> None:
        """Close all connections, also those to the Sentinels."""
        await super().aclose()
        await self.sentinel_manager.aclose()


def sentinel_pool(
    urls: Sequence[str], *, service: str, login: dict[str, str], **options: Any
) -> SentinelPool:
    """Make a pool of connections to a master. ``urls`` has one for each Sentinel; the master has its options.

    Raises:
        ValueError: An option is invalid.

    """
    each: list[dict[str, Any]] = [dict(parse_url(url)) for url in urls]
    hosts = [(one.pop("host"), one.pop("port")) for one in each]
    of_master = {**each[0], **options}
    of_sentinels = {name: value for name, value in of_master.items() if name.startswith(("ssl_", "socket_"))}
    tls = of_master.pop("connection_class", None) is SSLConnection
    sentinel: Any = cast("Any", _Sentinels)(
        hosts,
        sentinel_kwargs={
            **of_sentinels,
            **login,
            "ssl": tls,
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
        },
    )
    pool: SentinelPool = cast("Any", SentinelPool)(
        service,
        sentinel,
        connection_class=SentinelManagedSSLConnection if tls else SentinelManagedConnection,
        **of_master,
    )
    return pool
