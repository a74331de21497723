"""Publishes runs again that have lost their messages, and wakes those whose time has come."""

from __future__ import annotations

import asyncio
import logging

from inferfleet.agents.runs import AgentRuns
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import InferfleetError, ServiceUnreachableError
from inferfleet.schemas.names import run_queue
from inferfleet.schemas.run import RunState

logger = logging.getLogger(__name__)


class Sweep:
    """Looks at the unfinished runs of a queue, each about as often as ``interval_s``, whoever does."""

    def __init__(self, fleet: Fleet, runs: AgentRuns, *, queue: str, interval_s: float) -> None:
        self._fleet = fleet
        self._runs = runs
        self._queue = queue
        self._interval_s = interval_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except InferfleetError as error:
                logger.warning("cannot look for runs that have lost their messages (%s)", error)
            except Exception:
                logger.exception("cannot look for runs that have lost their messages")
            # Several times in an interval, because runs whose time has come wait for this.
            await asyncio.sleep(self._interval_s / 4)

    async def look(self) -> None:
        """Look at the runs at which it is time to look."""
        records = self._runs.records
        while due := await records.look(self._queue, again_ms=int(self._interval_s * 1000)):
            # As long as messages wait, those of these runs may be among them.
            empty = not await self._fleet.publisher.waiting(run_queue(self._queue))
            for run_id in due:
                try:
                    await self._look_at(run_id, empty=empty)
                except ServiceUnreachableError:
                    raise
                except Exception:
                    # A newer version may have written its record, or that of its parent. The others go on.
                    logger.exception("cannot look at run %s", run_id)

    async def _look_at(self, run_id: str, *, empty: bool) -> None:
        record = await self._runs.records.read(run_id)
        if record is None:
            await self._runs.records.close(self._queue, run_id)
            return
        order = record.order
        if record.result is not None:
            await self._runs.conclude(order, record.result)
        elif record.state is RunState.WAITING:
            wake_ms, now_ms = record.wake_ms or 0, self._runs.records.now_ms()
            if wake_ms > now_ms:
                await self._runs.records.look_at(order.queue, order.id, at_ms=wake_ms)
            else:
                # The clock of its runner may be a little behind, so that the run waits until the same time.
                await self._runs.tell(order, f"wake:{now_ms}", "")
        elif empty and not record.lease_left_ms:
            logger.info("publishing run %s again: it has no message", order.id)
            await self._runs.publish(order)
