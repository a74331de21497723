"""How often a full worker tries to take an urgent job that it does not get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any, cast

import pytest

from inferfleet.schemas import JobState
from inferfleet.wire.redis.job_listing import Entry
from inferfleet.wire.redis.lost_messages import Marks
from inferfleet.worker import urgent
from inferfleet.worker.urgent import TRIES, UrgentJobs

NOW_MS = 1_000_000


class Index:
    """One urgent job that is queued, and whose message the queue does not have."""

    now_ms = NOW_MS

    async def entered_since(self, since_ms: int, priority: int) -> AsyncGenerator[list[Entry]]:
        yield [Entry("01", NOW_MS)] if since_ms <= NOW_MS and priority == 9 else []

    async def marks(self, job_ids: Iterable[str]) -> list[Marks]:
        return [Marks(JobState.QUEUED, *[""] * 6) for _ in job_ids]


class FullSlots:
    full = preemptible = True

    def preempt(self) -> None:
        pass


class EmptyQueue:
    def __init__(self) -> None:
        self.asked = 0

    async def take_urgent(self, least: int) -> bool:
        self.asked += 1
        return False


@pytest.mark.parametrize("later_ms", [0, 3_600_000])
async def test_it_tries_ten_times_at_once_and_then_once_with_each_look_back(
    monkeypatch: pytest.MonkeyPatch, later_ms: int
) -> None:
    monkeypatch.setattr(urgent, "LOOK_INTERVAL_S", 0.0)
    index, queue = Index(), EmptyQueue()
    jobs = UrgentJobs(cast("Any", index), least=9, slots=cast("Any", FullSlots()), here=())
    taking = asyncio.create_task(jobs.take(cast("Any", queue)))
    for looks_back in range(3):
        before = queue.asked
        # Many more looks than tries.
        for _ in range(100 * TRIES):
            await asyncio.sleep(0)
        assert queue.asked - before == (1 if looks_back else TRIES)
        index.now_ms = NOW_MS + later_ms
        jobs._looks_back_at = 0.0
    taking.cancel()
    await asyncio.wait([taking])
