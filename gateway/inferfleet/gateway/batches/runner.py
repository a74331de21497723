"""Looks for batches that nobody runs, and runs some of them in this gateway."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Final

import uuid_utils

from inferfleet.gateway.batches.files import Files
from inferfleet.gateway.batches.run import LEASE_S, BatchRun, folder_of
from inferfleet.gateway.gateway import Gateway
from inferfleet.schemas.errors import InferfleetError
from inferfleet.wire.redis.batches import BatchLostError
from inferfleet.wire.tasks import cancel_and_wait, to_its_end

logger = logging.getLogger(__name__)

LOOK_S: Final = 3.0
"""How often a gateway looks for batches that nobody runs."""

RELEASE_S: Final = 5.0
"""How long a stopping gateway tries to hand a batch over. Without that, another waits for the lease."""


class BatchRunner:
    """Runs batches, those with the next deadlines first, as many at a time as the settings say."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._records = gateway.batches
        self._running: dict[str, asyncio.Task[None]] = {}
        self._news = gateway.new_batch

    async def run(self) -> None:
        """Run batches until cancelled, and hand those over then that have not ended."""
        files = self._gateway.files
        if files is None:
            return
        try:
            while True:
                self._news.clear()
                try:
                    for batch_id in await self._records.open():
                        await self._begin(batch_id, files)
                except InferfleetError as error:
                    logger.warning("cannot look for batches (%s)", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._news.wait()
        finally:
            await cancel_and_wait(*self._running.values())

    async def _begin(self, batch_id: str, files: Files) -> None:
        """Run a batch, if nobody does and this gateway has a place for it."""
        if batch_id in self._running or len(self._running) >= self._gateway.settings.batches_at_once:
            return
        runner = uuid_utils.uuid7().hex
        try:
            record = await self._records.claim(batch_id, runner=runner, lease_s=LEASE_S)
        except ValueError:
            # Of a newer gateway, perhaps. The others go on.
            logger.exception("batch %s cannot be read", batch_id)
            return
        if record is not None:
            run = BatchRun(record, runner=runner, gateway=self._gateway, files=files)
            task = asyncio.create_task(self._bring_to_its_end(batch_id, run))
            self._running[batch_id] = task
            task.add_done_callback(partial(self._ended, batch_id))
        elif not await self._records.exists(batch_id):
            # The record has expired.
            await files.storage.apart(files.storage.remove, folder_of(batch_id))
            await self._records.close(batch_id)

    async def _bring_to_its_end(self, batch_id: str, run: BatchRun) -> None:
        try:
            await run.run()
        except asyncio.CancelledError:
            await to_its_end(self._hand_over(batch_id, run))
            raise
        except BatchLostError:
            logger.warning("another gateway has taken over batch %s", batch_id)
        except InferfleetError as error:
            # Once the lease has run out, some gateway tries again.
            logger.warning("batch %s is interrupted (%s)", batch_id, error)
        except Exception:
            logger.exception("batch %s is interrupted", batch_id)

    async def _hand_over(self, batch_id: str, run: BatchRun) -> None:
        try:
            async with asyncio.timeout(RELEASE_S):
                await run.release()
        except (BatchLostError, InferfleetError, TimeoutError) as error:
            logger.warning("batch %s is left to its lease (%s)", batch_id, error)

    def _ended(self, batch_id: str, _: asyncio.Task[None]) -> None:
        del self._running[batch_id]
        self._news.set()
