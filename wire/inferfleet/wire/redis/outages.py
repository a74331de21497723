"""Lets connections of redis-py raise only redis-py's errors when they end."""

from __future__ import annotations

from functools import cache
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError


def tell_ends(pool: Any) -> None:
    """Let the connections of a pool raise ``ConnectionError`` if their transport is closed already.

    The event loop of workers and gateways, uvloop, raises a ``RuntimeError`` then.
    """
    pool.connection_class = _telling(pool.connection_class)


@cache
def _telling(connection_class: Any) -> Any:
    class Connection(connection_class):  # type: ignore[misc]
        async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
            try:
                await super().send_packed_command(*arguments, **options)
            except RuntimeError as error:
                raise RedisConnectionError(str(error)) from error

    return Connection
