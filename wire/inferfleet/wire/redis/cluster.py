"""Which node of a Redis Cluster has which keys, and a client of each node.

redis-py makes the map of slots. Its client of a whole cluster awaits one command after the other; here each
node has a client of its own, of the same kind as that of a single server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, RedisClusterException, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from inferfleet.wire.redis.outages import tell_ends
from inferfleet.wire.tasks import to_its_end

REFRESH_TIMEOUT_S: Final = 5.0
"""How long it may take to learn the map from some node."""

NODE_TIMEOUT_S: Final = 2.0
"""How long one node may take to tell the map before the next one is asked."""

_POOL_OPTIONS: Final = ("max_connections", "timeout")


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key."""
    return int(key_slot(key if isinstance(key, bytes) else key.encode()))


class ClusterClient:
    """A cluster. ``urls`` has one for each known node; ``options`` are those of each pool of connections."""

    def __init__(self, urls: Sequence[str], options: dict[str, Any]) -> None:
        self._urls = urls
        self._options = options
        self._known = [_place(url) for url in urls]
        self._owners = [""] * REDIS_CLUSTER_HASH_SLOTS
        self._masters: set[str] = set()
        self._clients: dict[str, aioredis.Redis] = {}
        self._refreshing = asyncio.Lock()
        self._attempts = 0
        self._failure: Exception | None = None
        """Why the last attempt to learn the map failed."""
        self.learned = False
        """Whether the map was ever learned. Until then only those nodes are known that others have named."""
        self.changes = 0
        """How often a slot was found at another node than before."""
        # Invalid options are an error now.
        self.node(self._first)
        self._cluster()

    @property
    def masters(self) -> list[str]:
        """The nodes that have slots, as host and port."""
        return sorted(self._masters)

    def owner(self, slot: int) -> str:
        """Return the node that has a slot, as far as is known."""
        return self._owners[slot] or self._first

    @property
    def _first(self) -> str:
        return "{}:{}".format(*self._known[0])

    def serves(self, node: str, key: str) -> bool:
        """Return whether a node has a key."""
        return self._owners[slot_of(key)] == node

    def node(self, name: str) -> aioredis.Redis:
        """Return the client of a node."""
        if name not in self._clients:
            host, _, port = name.rpartition(":")
            options: dict[str, Any] = {
                **parse_url(self._urls[0]),
                **self._options,
                "host": host,
                "port": int(port),
            }
            pool = aioredis.BlockingConnectionPool(**options)
            tell_ends(pool)
            self._clients[name] = aioredis.Redis.from_pool(pool)
        return self._clients[name]

    def redirected(self, asked: str, error: AskError) -> str:
        """Note what a node has said about a slot, and return the node that it names.

        In redis-py, ``MOVED`` is a kind of ``ASK``.
        """
        # A node that does not know its own address names none.
        node = f"{error.host or asked.rpartition(':')[0]}:{error.port}"
        self._masters.add(node)
        if isinstance(error, MovedError) and self._owners[error.slot_id] != node:
            self._owners[error.slot_id] = node
            self.changes += 1
        return node

    async def refresh(self) -> None:
        """Learn the map from any node that answers. Concurrent calls share one attempt.

        Raises:
            redis.exceptions.ConnectionError: No node answers.
            redis.exceptions.ResponseError: A node refuses, or is not one of a cluster.

        """
        attempts = self._attempts
        async with self._refreshing:
            if attempts == self._attempts:
                try:
                    await self._learn()
                except (RedisError, OSError) as error:
                    self._failure = error
                else:
                    self._failure = None
                self._attempts += 1
            if self._failure is not None:
                raise self._failure

    async def _learn(self) -> None:
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT_S), AsyncExitStack() as stack:
                nodes = self._cluster().nodes_manager
                # Otherwise a cancellation could leave connections open.
                stack.push_async_callback(lambda: to_its_end(_close(nodes)))
                await nodes.initialize()
                owners = {slot: owners[0].name for slot, owners in nodes.slots_cache.items()}
                self._known = [(node.host, int(node.port)) for node in nodes.nodes_cache.values()]
        except RedisClusterException as error:
            raise _reason(error) from error
        except TimeoutError as error:
            raise RedisConnectionError("no node of the cluster answers") from error
        except RuntimeError as error:
            # From uvloop: a connection ended between two calls.
            raise RedisConnectionError(str(error)) from error
        before, before_known = self._owners, self.learned
        self.learned = True
        self._owners = [owners.get(slot, "") for slot in range(REDIS_CLUSTER_HASH_SLOTS)]
        self._masters = {owner for owner in self._owners if owner}
        self.changes += any(
            old != new and (old or before_known) for old, new in zip(before, self._owners, strict=True)
        )

    async def aclose(self) -> None:
        """Close the connections to all nodes."""
        async with AsyncExitStack() as stack:
            for client in self._clients.values():
                stack.push_async_callback(client.aclose)

    def _cluster(self) -> Any:
        """Make redis-py's client of the nodes that the URL names, and of those that are known besides."""
        options: dict[str, Any] = {**parse_url(self._urls[0]), **self._options}
        for name in ("host", "port", *_POOL_OPTIONS):
            options.pop(name, None)
        options |= {"socket_timeout": NODE_TIMEOUT_S, "socket_connect_timeout": NODE_TIMEOUT_S}
        tls = options.pop("connection_class", None) is SSLConnection
        places = dict.fromkeys([*self._known, *map(_place, self._urls)])
        return aioredis.RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in places],
            require_full_coverage=False,
            dynamic_startup_nodes=False,
            ssl=tls,
            **options,
        )


async def _close(nodes: Any) -> None:
    for cache in ("nodes_cache", "startup_nodes"):
        # The map has been learned by then, or there is another error.
        with suppress(RedisError, OSError):
            await nodes.aclose(cache)


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 6379


def _reason(error: BaseException) -> RedisConnectionError | ResponseError:
    """Return the refusal that redis-py's error hides, or that no node answers."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ResponseError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return RedisConnectionError(str(error))
