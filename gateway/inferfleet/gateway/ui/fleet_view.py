"""One view of the fleet for all viewers of a gateway's page, and the samples for the plots."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Final

from inferfleet.producer import Fleet
from inferfleet.schemas.errors import InferfleetError
from inferfleet.schemas.fleet_history import FleetSample
from inferfleet.schemas.fleet_snapshot import FleetSnapshot
from inferfleet.wire.redis.fleet_history import SAMPLE_S, FleetHistory

logger = logging.getLogger(__name__)

FRESH_S: Final = 2.0
"""How old a snapshot may be that a page shows, so that many viewers cost no more than one."""


class FleetView:
    """Takes snapshots of the fleet, one at a time, and samples of them for the last hour."""

    def __init__(self, fleet: Fleet) -> None:
        self._watch = fleet.watch
        self._lock = asyncio.Lock()
        self._taken = float("-inf")
        self._last: FleetSnapshot | None = None
        recorder = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self.history = FleetHistory(fleet.pipeline, recorder=recorder)

    async def snapshot(self) -> FleetSnapshot:
        """Return the fleet as it was at most ``FRESH_S`` ago."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            if self._last is None or clock() - self._taken > FRESH_S:
                self._last = await self._watch.snapshot()
                self._taken = clock()
            return self._last

    def forget(self) -> None:
        """Let the next page see what has just been changed."""
        self._last = None

    async def record(self) -> None:
        """Record samples until cancelled, while no other gateway does."""
        away = False
        while True:
            try:
                if await self.history.is_recorder():
                    snapshot = await self.snapshot()
                    if not snapshot.unreachable:
                        await self.history.record(_sample(snapshot))
                away = False
            except InferfleetError as error:
                if not away:
                    logger.warning("no samples are recorded for the plots of the web page (%s)", error)
                away = True
            await asyncio.sleep(SAMPLE_S)


def _sample(snapshot: FleetSnapshot) -> FleetSample:
    return FleetSample(
        at=snapshot.at,
        unfinished=sum(sum(pool.unfinished.values()) for pool in snapshot.pools),
        running=sum(worker.running for pool in snapshot.pools for worker in pool.workers),
        tokens_per_s=sum(pool.tokens_per_s for pool in snapshot.pools),
    )
