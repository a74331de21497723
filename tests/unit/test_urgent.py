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
from inferfleet.worker.urgent import AT_MOST, TRIES, UrgentJobs


class Index:
    """One urgent job whose message the queue does not have."""

    state = JobState.QUEUED

    now_ms = 0

    async def unfinished(self, priority: int, *, until_ms: int) -> AsyncGenerator[list[Entry]]:
        yield [Entry("01", 0)] if priority == 9 else []

    async def marks(self, job_ids: Iterable[str]) -> list[Marks]:
        return [Marks(self.state, *[""] * (len(Marks._fields) - 1)) for _ in job_ids]


class FullSlots:
    full = preemptible = True


class EmptyQueue:
    def __init__(self) -> None:
        self.asked = 0

    async def take_urgent(self, least: int) -> bool:
        self.asked += 1
        return False


async def turns_of_the_loop() -> None:
    """Many more than there are tries."""
    for _ in range(100 * TRIES):
        await asyncio.sleep(0)


def urgent_jobs(index: Index) -> UrgentJobs:
    return UrgentJobs(cast("Any", index), least=9, slots=cast("Any", FullSlots()), here=())


@pytest.mark.parametrize(("state", "tries"), [(JobState.QUEUED, TRIES), (JobState.RUNNING, 1)])
async def test_it_tries_a_few_times_to_take_an_announced_job_and_then_once_with_each_look(
    monkeypatch: pytest.MonkeyPatch, state: JobState, tries: int
) -> None:
    """Without a look at the record, only the first time."""
    monkeypatch.setattr(urgent, "RETRY_INTERVAL_S", 0.0)
    index, queue = Index(), EmptyQueue()
    index.state = state
    jobs = urgent_jobs(index)
    taking = asyncio.create_task(jobs.take(cast("Any", queue)))
    await turns_of_the_loop()
    jobs.announced("01")
    await turns_of_the_loop()
    assert queue.asked == tries
    monkeypatch.setattr(urgent, "LOOK_INTERVAL_S", 0.0)
    jobs._looks_at = 0.0
    jobs._news.set()
    await turns_of_the_loop()
    if state is JobState.RUNNING:
        assert queue.asked == tries
    else:
        assert queue.asked > 2 * tries
    taking.cancel()
    await asyncio.wait([taking])


async def test_it_remembers_a_bounded_number_of_announced_jobs() -> None:
    """They may be many while nothing can be preempted for them."""
    jobs = urgent_jobs(Index())
    for number in range(2 * AT_MOST):
        jobs.announced(str(number))
    assert len(jobs._tries) == AT_MOST
