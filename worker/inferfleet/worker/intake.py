"""How many messages a worker holds: what its engine can run and a small look-ahead, and not more.

What a full worker hoards, a new worker cannot take, and the broker cannot reorder. When KV memory runs
out the engine runs fewer jobs than it has slots; the surplus waits inside it, and the worker takes less.
"""

from __future__ import annotations

import asyncio
import logging
import time

from inferfleet.worker.broker import Session
from inferfleet.worker.ports import Engine

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""How often the engine's load is looked at."""

ROOM_INTERVAL_S = 0.2
"""How often room is filled that paused jobs, or those of former consumers, have left."""

PARKED_PER_PLACE = 4
"""For each job that the worker may hold, so many others may wait in it for their retry. When more jobs fail
at once, something is wrong with the worker or what it needs, and it takes in less."""


def wanted(*, held: int, waiting: int, max_running: int, look_ahead: int) -> int:
    """How many messages to hold, given how many are held and how many of them wait inside the engine."""
    if waiting > look_ahead:
        return max(1 + look_ahead, held - (waiting - look_ahead))
    if waiting == 0:
        return max_running + look_ahead
    return min(max_running + look_ahead, held + look_ahead - waiting)


async def adapt_intake(session: Session, engine: Engine, *, max_running: int, look_ahead: int) -> None:
    """Keep what the session holds in step with the engine, until cancelled."""
    full = limit = max_running + look_ahead
    overloaded = False
    looked_at = time.monotonic()
    while True:
        await asyncio.sleep(ROOM_INTERVAL_S)
        if time.monotonic() - looked_at >= INTERVAL_S:
            looked_at = time.monotonic()
            waiting = engine.stats().waiting
            # One look may fall between a delivery and the engine's next step; two in a row may not.
            was_overloaded, overloaded = overloaded, waiting > look_ahead
            if limit < full or (overloaded and was_overloaded):
                held = session.held - session.parked
                new = wanted(held=held, waiting=waiting, max_running=max_running, look_ahead=look_ahead)
                if new != limit:
                    logger.info("intake", extra={"limit": new, "held": held, "waiting": waiting})
                    limit = new
        # Shielded: cancelled in the middle, it would close the channel.
        await asyncio.shield(session.hold(limit + min(session.parked, PARKED_PER_PLACE * full)))
