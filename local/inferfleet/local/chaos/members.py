"""The workers of a soak: each place in the fleet has a worker, and a new one when that one has ended."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from datetime import UTC, datetime

from inferfleet.local.chaos.harness import Harness, Link
from inferfleet.local.chaos.history import WorkerLife

logger = logging.getLogger(__name__)


class Place:
    """One place in the fleet. A fault that concerns it holds ``busy`` for as long as it lasts."""

    def __init__(self, harness: Harness, link: Link) -> None:
        self.link = link
        self.busy = asyncio.Lock()
        self.deaths: dict[str, datetime] = {}
        self.asleep: defaultdict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
        self.crashes: dict[str, str] = {}
        """Workers that ended by themselves and should not have, with how."""
        self.killed_by_jobs = 0
        self._harness = harness
        self._expected: set[str] = set()
        self.member = harness.launch(link)

    async def keep(self) -> None:
        """Keep a worker here, until cancelled."""
        while True:
            code = await self.member.process.wait()
            self.deaths[self.member.id] = datetime.now(UTC)
            if self.member.id not in self._expected:
                self._judge(code)
            self.link.reset()
            self.member = self._harness.launch(self.link)

    def expect_end(self) -> None:
        """Note that the worker that is here now ends because of a fault."""
        self._expected.add(self.member.id)

    def lives(self) -> dict[str, WorkerLife]:
        """What is known of all workers that were here."""
        return {
            worker_id: WorkerLife(died_at=self.deaths.get(worker_id), asleep=tuple(self.asleep[worker_id]))
            for worker_id in self.deaths.keys() | self.asleep.keys() | {self.member.id}
        }

    def _judge(self, code: int) -> None:
        how = self.member.process.describe_end()
        if code == -9 or (code == 1 and "the engine died" in how):
            # A poison job or an engine killer. Nobody else sends SIGKILL.
            self.killed_by_jobs += 1
        elif code == 3:
            # It was starting while a service was away, and says so.
            pass
        else:
            logger.error("%s", how)
            self.crashes[self.member.id] = how
