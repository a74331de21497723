"""Decides how many jobs the engine gets at once, and how many more the worker prefetches.

A new worker cannot take the jobs that a full worker holds. An engine that runs out of KV memory, or whose
jobs have several choices each, runs fewer jobs than it has slots. Then the worker gives it fewer jobs, and
prefetches fewer from the broker. It also prefetches fewer while jobs run here whose messages are elsewhere,
or gone.
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
"""How often the engine's load is checked."""

ROOM_INTERVAL_S = 0.2
"""How often the worker fills the room that paused jobs, or deliveries of former consumers, have left."""

PARKED_PER_PLACE = 4
"""For each job that the worker may hold, this many others may wait in it for their retry. If more jobs fail
at once, something is wrong with the worker or with what it needs, and it takes fewer jobs."""

MEMORY_USED_UP = 0.9
"""If so much of its KV memory is in use, an engine gets no more slots: running jobs need the rest."""


def wanted(stats: EngineStats, *, limit: int, taken: int, max_running: int) -> int:
    """Return how many slots there should be, if there are ``limit`` now, of which ``taken`` are in use.

    Requests that wait inside the engine came too early: the number of slots shrinks by their share of all
    requests. If none waits, and memory is left, the number grows by half, up to the maximum.
    """
    if not stats.waiting:
        if stats.kv_cache_usage > MEMORY_USED_UP:
            return limit
        return min(max_running, limit + (limit + 1) // 2)
    return max(1, min(limit, taken * stats.running // (stats.running + stats.waiting)))


async def prefetch(subscription: Subscription, slots: Slots, *, look_ahead: int, parked: int = 0) -> None:
    """Let the subscription hold a message for each slot, ``look_ahead`` more, and those that take no place.

    A job that runs without its message takes a slot, but no delivery: a message in its place would wait here
    as long as the job runs, and no other worker could take it. The same is true of a turn that runs under a
    message of the worker's own queue. While the pool is paused, it holds none.
    """
    if slots.paused:
        await subscription.prefetch(0)
        return
    # A lower limit ends consumers, so the number of these turns may rise by the look-ahead before it counts.
    if not subscription.warm_places <= slots.warm <= subscription.warm_places + look_ahead:
        subscription.warm_places = slots.warm
    places = slots.limit - slots.without_message - subscription.warm_places + look_ahead
    await subscription.prefetch(places + parked + subscription.carrying, warm=slots.limit + look_ahead)


async def adapt_intake(
    subscription: Subscription, engine: Engine, slots: Slots, *, max_running: int, look_ahead: int
) -> None:
    """Keep the slots, and what the subscription holds, in step with the engine, until cancelled.

    While the pool is paused, nothing is delivered, and the jobs that wait for a slot are given back.
    """
    overloaded = False
    looked_at = time.monotonic()
    while True:
        await asyncio.sleep(ROOM_INTERVAL_S)
        if time.monotonic() - looked_at >= INTERVAL_S:
            looked_at = time.monotonic()
            stats = engine.stats()
            # One check may fall between a new request and the engine's next step; two in a row cannot.
            was_overloaded, overloaded = overloaded, stats.waiting > 0
            if overloaded is was_overloaded:
                new = wanted(stats, limit=slots.limit, taken=slots.taken, max_running=max_running)
                if new != slots.limit:
                    logger.info(
                        "intake", extra={"slots": new, "taken": slots.taken, "waiting": stats.waiting}
                    )
                    slots.resize(new)
        paused = slots.paused
        parked = min(subscription.parked, PARKED_PER_PLACE * (max_running + look_ahead))
        # Shielded, because cancelling it halfway would close the channel.
        await asyncio.shield(prefetch(subscription, slots, look_ahead=look_ahead, parked=parked))
        if paused:
            # Only behind that, because RabbitMQ would deliver them here again.
            slots.refuse_waiting()
