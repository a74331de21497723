"""The workers of a soak: each place in the fleet has a worker, and a new one when that one has ended."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from datetime import UTC, datetime

from inferfleet.local.chaos.harness import ENGINE_ARGS, Harness, Link, Member
from inferfleet.local.chaos.history import WorkerLife
from inferfleet.local.chaos.workload import MODELS

logger = logging.getLogger(__name__)


class WorkerSlot:
    """One place in the fleet. A fault of its worker holds ``busy`` while it lasts."""

    def __init__(self, harness: Harness, link: Link, *, models: random.Random | None = None) -> None:
        """With ``models`` to draw from, each worker here may have another model than the one before."""
        self.link = link
        self.busy = asyncio.Lock()
        self.deaths: dict[str, datetime] = {}
        self.asleep: defaultdict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
        self.crashes: dict[str, str] = {}
        """Workers that ended by themselves and should not have, with how."""
        self.killed_by_jobs = 0
        self.another_model = 0
        """How many workers had another model than their predecessors."""
        self._harness = harness
        self._models = models
        self._expected: set[str] = set()
        self.member = self._launch()

    async def keep(self) -> None:
        """Keep a worker here, until cancelled."""
        while True:
            code = await self.member.process.wait()
            self.deaths[self.member.id] = datetime.now(UTC)
            if self.member.id not in self._expected:
                self._judge(code)
            self.link.reset()
            before = self.member.process.settings.model
            self.member = self._launch()
            self.another_model += self.member.process.settings.model != before

    def expect_end(self) -> None:
        """Note that the current worker ends because of a fault."""
        self._expected.add(self.member.id)

    def lives(self) -> dict[str, WorkerLife]:
        """Return the lives of all workers of this place."""
        return {
            worker_id: WorkerLife(died_at=self.deaths.get(worker_id), asleep=tuple(self.asleep[worker_id]))
            for worker_id in self.deaths.keys() | self.asleep.keys() | {self.member.id}
        }

    def _launch(self) -> Member:
        if self._models is None:
            return self._harness.launch(self.link)
        model, weights = self._models.choice(list(MODELS.items()))
        return self._harness.launch(self.link, model=model, engine_args={**ENGINE_ARGS, "weights": weights})

    def _judge(self, code: int) -> None:
        how = self.member.process.describe_end()
        if code == -9 or (code == 1 and "the engine died" in how):
            # A poison job or an engine killer: nothing else sends SIGKILL.
            self.killed_by_jobs += 1
        elif code == 3:
            # The worker was starting during an outage of a service, and its exit code says so.
            pass
        else:
            logger.error("%s", how)
            self.crashes[self.member.id] = how
