"""A Redis that throws keys away when its memory is full breaks every promise of ours, quietly.

All keys expire some day, so the ``volatile-`` policies take them like the ``allkeys-`` ones. What is missed
later is an error, but nobody gets back what was lost.
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
        ConfigurationError: It has a ``maxmemory`` and a policy other than ``noeviction``.
        ServiceUnreachableError: It does not answer any more.

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
    """What Redis does when its memory is full; ``None`` if it does not say. Without a limit it never is."""
    for ask in (partial(client.info, "memory"), partial(client.config_get, "maxmemory*")):
        try:
            answer: Any = await ask()
        except ResponseError:
            # Managed services forbid the one or the other.
            continue
        except (RedisError, OSError) as error:
            raise ServiceUnreachableError(f"Redis does not answer ({error})") from error
        said = {str(name).replace("-", "_"): str(value) for name, value in answer.items()}
        if "maxmemory_policy" in said:
            return said["maxmemory_policy"] if said.get("maxmemory") != "0" else KEEPS_EVERYTHING
    return None
