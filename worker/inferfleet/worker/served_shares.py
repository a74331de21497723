"""Adds the jobs that end on this worker to what their tenants have been served."""

from __future__ import annotations

import asyncio
import logging
import os
from itertools import count
from typing import NoReturn

from typing_extensions import override

from inferfleet.schemas import Result
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.schemas.shares import service_of
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.shares import Served, add_served
from inferfleet.worker.hooks import Hooks
from inferfleet.worker.job_run import JobRun

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
"""A pause before an addition that Redis has refused is sent again."""


class ServedShares(Hooks):
    """Adds the jobs that ended while the previous addition was under way, with a command for each tenant."""

    def __init__(self, settings: WorkerSettings, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline
        self._pool = settings.pool
        self._ttl_s = settings.queued_ttl_s
        self._name = f"{settings.worker_id}:{os.urandom(4).hex()}"
        self._numbers = count()
        self._new: dict[str, list[tuple[str, int]]] = {}
        """The jobs of each tenant, and the service of each."""
        self._ended = asyncio.Event()
        self._outage = Outage()

    @override
    def on_end(self, run: JobRun | None, result: Result) -> None:
        if run is None:
            return
        self._new.setdefault(run.job.tenant, []).append((run.job.id, service_of(result.usage)))
        self._ended.set()

    async def run(self) -> NoReturn:
        """Add jobs until cancelled."""
        while True:
            await self._ended.wait()
            self._ended.clear()
            new, self._new = self._new, {}
            for tenant, ended in new.items():
                jobs, services = zip(*ended, strict=True)
                await self._add(Served(next(self._numbers), tenant, sum(services), jobs))

    async def _add(self, served: Served) -> None:
        while True:
            try:
                await add_served(self._pipeline, self._pool, self._name, served, ttl_s=self._ttl_s)
            except (ServiceUnreachableError, ServiceRefusedError) as error:
                if self._outage.began():
                    logger.warning("cannot add to what tenants have been served; retrying (%s)", error)
                await asyncio.sleep(PAUSE_S)
            else:
                self._outage.ended()
                return
