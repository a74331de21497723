"""Looks for batches that nobody runs, and runs some of them in this gateway."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Final

import uuid_utils

from inferfleet.gateway.batches.files import Files
from inferfleet.gateway.batches.run import LEASE_S, BatchRun, folder_of
from inferfleet.gateway.batches.scratch import remove_abandoned
from inferfleet.gateway.batches.storage import StorageError
from inferfleet.gateway.gateway import Gateway
from inferfleet.schemas.batch import BatchOrder
from inferfleet.schemas.errors import InferfleetError
from inferfleet.wire.redis.batches import BatchLostError
from inferfleet.wire.tasks import cancel_and_wait, to_its_end

logger = logging.getLogger(__name__)

LOOK_S: Final = 3.0
"""How often a gateway looks for batches that nobody runs."""

RELEASE_S: Final = 5.0
"""How long a stopping gateway tries to hand a batch over. If it fails, others wait for the lease."""

ENDING_AT_ONCE: Final = 4
"""How many more batches a gateway runs that are overdue or to be cancelled: they submit nothing."""


class BatchRunner:
    """Runs batches, as many at a time as the settings say.

    Those of tenants with the fewest batches here come first, and of each tenant those with the next
    deadlines. A tenant that has all places leaves some to others.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._records = gateway.batches
        self._orders: dict[str, BatchOrder | None] = {}
        """The orders of open batches; ``None`` for those that cannot be read."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._news = gateway.new_batch
        self._metrics = gateway.metrics

    async def run(self) -> None:
        """Run batches until cancelled; then hand over those that have not ended."""
        files = self._gateway.files
        if files is None:
            return
        await asyncio.to_thread(remove_abandoned)
        try:
            while True:
                self._news.clear()
                try:
                    await self._look(files)
                except InferfleetError as error:
                    logger.warning("cannot look for batches (%s)", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._news.wait()
        finally:
            await cancel_and_wait(*self._running.values())

    async def _look(self, files: Files) -> None:
        """Run batches that nobody runs, if this gateway has a place for them."""
        at_once = self._gateway.settings.batches_at_once
        if not at_once:
            return
        ends_ms = await self._records.open()
        self._metrics.batches_open.set(len(ends_ms))
        self._orders = {batch_id: self._orders[batch_id] for batch_id in ends_ms if batch_id in self._orders}
        for batch_id in ends_ms:
            if batch_id not in self._orders:
                await self._read(batch_id, files)
        waiting = [
            order
            for order in map(self._orders.get, ends_ms)
            if order is not None and order.id not in self._running and self._may_run(order)
        ]
        now_ms = self._records.now_ms()
        for order in self._fairly(waiting):
            ending = ENDING_AT_ONCE if ends_ms[order.id] <= now_ms else 0
            if len(self._running) < at_once + ending:
                await self._begin(order.id, files)
            elif (crowding := self._crowding(order.tenant)) and await self._begin(order.id, files):
                # It hands its batch over.
                crowding.cancel()

    async def _read(self, batch_id: str, files: Files) -> None:
        try:
            order = self._orders[batch_id] = await self._records.order(batch_id)
        except ValueError:
            # A newer gateway may have written it. The other batches go on.
            logger.exception("batch %s cannot be read", batch_id)
            self._orders[batch_id] = None
            return
        if order is None:
            # The record has expired.
            del self._orders[batch_id]
            try:
                await files.storage.apart(files.storage.remove, folder_of(batch_id))
            except StorageError as error:
                logger.warning(
                    "cannot remove the files of batch %s, whose record has expired (%s)", batch_id, error
                )
                return
            await self._records.close(batch_id)

    def _may_run(self, order: BatchOrder) -> bool:
        """Return whether this gateway knows what the API key of a batch allows, if there is one."""
        return order.key_id is None or self._gateway.keys is not None

    def _fairly(self, orders: Iterable[BatchOrder]) -> list[BatchOrder]:
        """Sort orders: the first of each tenant, and then the second. Those that run here count as well."""
        running = map(self._orders.get, self._running)
        places = Counter(order.tenant for order in running if order is not None)

        def place(order: BatchOrder) -> int:
            places[order.tenant] += 1
            return places[order.tenant]

        return sorted(orders, key=place)

    def _crowding(self, tenant: str) -> asyncio.Task[None] | None:
        """Return a run of the tenant that has most here, if it has at least two more than ``tenant``."""
        running: dict[str, list[asyncio.Task[None]]] = {tenant: []}
        for batch_id, task in self._running.items():
            order = self._orders.get(batch_id)
            if order is not None and not task.cancelling():
                running.setdefault(order.tenant, []).append(task)
        most = max(running.values(), key=len)
        return most[-1] if len(most) >= len(running[tenant]) + 2 else None

    async def _begin(self, batch_id: str, files: Files) -> bool:
        """Run a batch, if nobody does. Return whether it runs here."""
        runner = uuid_utils.uuid7().hex
        try:
            record = await self._records.claim(batch_id, runner=runner, lease_s=LEASE_S)
        except ValueError:
            logger.exception("batch %s cannot be read", batch_id)
            return False
        if record is None:
            return False
        run = BatchRun(record, runner=runner, gateway=self._gateway, files=files)
        task = asyncio.create_task(self._bring_to_its_end(batch_id, run))
        self._running[batch_id] = task
        self._metrics.batch_claims.inc()
        self._metrics.batches_running.set(len(self._running))
        task.add_done_callback(partial(self._ended, batch_id))
        return True

    async def _bring_to_its_end(self, batch_id: str, run: BatchRun) -> None:
        try:
            await run.run()
        except asyncio.CancelledError:
            await to_its_end(self._hand_over(batch_id, run))
            raise
        except BatchLostError:
            logger.warning("another gateway has taken over batch %s", batch_id)
        except InferfleetError as error:
            # Once the lease has run out, a gateway claims it again.
            logger.warning("batch %s is interrupted (%s)", batch_id, error)
        except Exception:
            logger.exception("batch %s is interrupted", batch_id)

    async def _hand_over(self, batch_id: str, run: BatchRun) -> None:
        try:
            async with asyncio.timeout(RELEASE_S):
                await run.release()
        except (BatchLostError, InferfleetError, TimeoutError) as error:
            logger.warning(
                "cannot hand over batch %s; others wait until its lease has run out (%s)",
                batch_id,
                str(error) or f"not within {RELEASE_S:g} s",
            )

    def _ended(self, batch_id: str, _: asyncio.Task[None]) -> None:
        del self._running[batch_id]
        self._metrics.batches_running.set(len(self._running))
        self._news.set()
