"""The workers of a soak: each place in the fleet has a worker, and a new one when that one has ended."""

from __future__ import annotations

import asyncio
import logging
import random

from inferfleet.local.chaos.harness import Harness, Link, Member
from inferfleet.local.chaos.limits import UnreadPipe
from inferfleet.local.chaos.workload import MODELS

UNREAD_LOGS = 0.25
"""The share of workers whose logs nobody reads."""

logger = logging.getLogger(__name__)


class WorkerSlot:
    """One place in the fleet. A fault of its worker holds ``busy`` while it lasts."""

    def __init__(
        self,
        harness: Harness,
        link: Link,
        *,
        models: random.Random | None = None,
        logs: random.Random | None = None,
    ) -> None:
        """With ``models`` to draw from, each worker here may have another model than the one before.

        With ``logs`` to draw from, some workers write their logs into a pipe that nobody reads.
        """
        self.link = link
        self.busy = asyncio.Lock()
        self.deaths = 0
        """How many workers have ended here."""
        self.crashes: dict[str, str] = {}
        """Workers that ended by themselves and should not have, with how."""
        self.killed_by_jobs = 0
        self.another_model = 0
        """How many workers had another model than their predecessors."""
        self.blocked_logs = 0
        """How many workers had lines to log and no room for them."""
        self._harness = harness
        self._models = models
        self._logs = logs
        self._unread: UnreadPipe | None = None
        self._expected: set[str] = set()
        self.member = self._launch()

    async def keep(self) -> None:
        """Keep a worker here, until cancelled."""
        while True:
            code = await self.member.process.wait()
            self.deaths += 1
            if self.member.id not in self._expected:
                self._judge(code)
            self.close_log()
            self.link.reset()
            before = self.member.process.settings.model
            self.member = self._launch()
            self.another_model += self.member.process.settings.model != before

    def expect_end(self) -> None:
        """Note that the current worker ends because of a fault."""
        self._expected.add(self.member.id)

    def close_log(self) -> None:
        """Close the pipe of a worker that has ended, if its log was one."""
        if self._unread is not None:
            self.blocked_logs += self._unread.full
            self._unread.close()
            self._unread = None

    def _launch(self) -> Member:
        if self._logs is not None and self._logs.random() < UNREAD_LOGS:
            self._unread = UnreadPipe()
        output = None if self._unread is None else self._unread.writer
        if self._models is None:
            return self._harness.launch(self.link, output=output)
        model, weights = self._models.choice(list(MODELS.items()))
        return self._harness.launch(
            self.link,
            output=output,
            model=model,
            engine_args={**self._harness.defaults["engine_args"], "weights": weights},
        )

    def _judge(self, code: int) -> None:
        how = self.member.process.describe_end()
        if code == -9 or (code == 1 and (self._unread is not None or "the engine died" in how)):
            # A poison job or an engine killer: nothing else sends SIGKILL. Of the second, only a log tells.
            self.killed_by_jobs += 1
        elif code == 3:
            # The worker was starting during an outage of a service, and its exit code says so.
            pass
        else:
            logger.error("%s", how)
            self.crashes[self.member.id] = how
