"""How many jobs the engine is given at once, and how many more the worker holds ready.

What a full worker hoards, a new worker cannot take. An engine that runs out of KV memory, or whose jobs have
several choices each, runs fewer jobs than it has slots: it is given fewer then, and the worker takes fewer
from the broker.
"""

from __future__ import annotations

import asyncio
import logging
import time

from inferfleet.worker.broker import Subscription
from inferfleet.worker.ports import Engine, EngineStats
from inferfleet.worker.slots import Slots

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""How often the engine's load is looked at."""

ROOM_INTERVAL_S = 0.2
"""How often room is filled that paused jobs, or those of former consumers, have left."""

PARKED_PER_PLACE = 4
"""For each job that the worker may hold, so many others may wait in it for their retry. When more jobs fail
at once, something is wrong with the worker or what it needs, and it takes in less."""

MEMORY_USED_UP = 0.9
"""With so much of its KV memory in use, an engine gets no more slots: those who run need the rest."""


def wanted(stats: EngineStats, *, limit: int, taken: int, max_running: int) -> int:
    """How many slots there should be, when there are ``limit`` and ``taken`` of them are in use.

    What waits inside the engine has come too early: the jobs in it are cut down by the share of its requests
    that wait. An engine in which nothing waits, and that has memory left, gets half as many slots again,
    until it has all.
    """
    if not stats.waiting:
        if stats.kv_cache_usage > MEMORY_USED_UP:
            return limit
        return min(max_running, limit + (limit + 1) // 2)
    return max(1, min(limit, taken * stats.running // (stats.running + stats.waiting)))


async def adapt_intake(
    subscription: Subscription, engine: Engine, slots: Slots, *, max_running: int, look_ahead: int
) -> None:
    """Keep the slots, and what the subscription holds, in step with the engine, until cancelled."""
    overloaded = False
    looked_at = time.monotonic()
    while True:
        await asyncio.sleep(ROOM_INTERVAL_S)
        if time.monotonic() - looked_at >= INTERVAL_S:
            looked_at = time.monotonic()
            stats = engine.stats()
            # One look may fall between a new request and the engine's next step; two in a row may not.
            was_overloaded, overloaded = overloaded, stats.waiting > 0
            if overloaded is was_overloaded:
                new = wanted(stats, limit=slots.limit, taken=slots.taken, max_running=max_running)
                if new != slots.limit:
                    logger.info(
                        "intake", extra={"slots": new, "taken": slots.taken, "waiting": stats.waiting}
                    )
                    slots.resize(new)
        parked = min(subscription.parked, PARKED_PER_PLACE * (max_running + look_ahead))
        # Shielded: cancelled in the middle, it would close the channel.
        await asyncio.shield(subscription.prefetch(slots.limit + look_ahead + parked + subscription.carrying))
