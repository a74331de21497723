"""Refuses a Redis that evicts keys when its memory is full, because that silently breaks every promise.

All keys have an expiry, so the ``volatile-`` policies evict them like the ``allkeys-`` ones. A process that
misses a key later raises an error, but nobody can restore the data.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import RedisError, ResponseError

from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError

logger = logging.getLogger(__name__)

KEEPS_EVERYTHING = "noeviction"


async def refuse_eviction(client: aioredis.Redis, *, allowed: bool) -> None:
    """Refuse a Redis that may evict keys, unless that is ``allowed``.

    Raises:
        ConfigurationError: Redis has a ``maxmemory`` and a policy other than ``noeviction``.
        ServiceUnreachableError: Redis does not answer any more.

    """
    if allowed:
        return
    policy = await _policy(client)
    if policy is None:
        logger.warning(
            "cannot ask Redis whether it evicts keys: it allows neither INFO nor CONFIG GET; "
            "make sure that its maxmemory-policy is noeviction"
        )
    elif policy != KEEPS_EVERYTHING:
        raise ConfigurationError(
            f"Redis has maxmemory-policy {policy!r}: when its memory is full it throws away jobs, answers "
            "and sessions. Set it to noeviction; or, if you can lose them, set INFERFLEET_ALLOW_EVICTION=true"
        )


async def _policy(client: aioredis.Redis) -> str | None:
    """Return Redis' eviction policy; ``None`` if it does not say. Without a memory limit none applies."""
    for ask in (partial(client.info, "memory"), partial(client.config_get, "maxmemory*")):
        try:
            answer: Any = await ask()
        except ResponseError:
            # Managed services forbid one command or the other.
            continue
        except (RedisError, OSError) as error:
            raise ServiceUnreachableError(f"Redis does not answer ({error})") from error
        said = {str(name).replace("-", "_"): str(value) for name, value in answer.items()}
        if "maxmemory_policy" in said:
            return said["maxmemory_policy"] if said.get("maxmemory") != "0" else KEEPS_EVERYTHING
    return None
