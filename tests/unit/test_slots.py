"""A slot goes to the most urgent job that waits, and only then has it started."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from inferfleet.schemas import Endpoint, Job
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.slots import REFILL_PATIENCE_S, Slots

HOUR = timedelta(hours=1)


class Undelivered:
    """Stands for a delivery; nothing here settles it."""

    reply_to = ""

    def __init__(self, priority: int = 0) -> None:
        self.properties = {"priority": priority}


class Broker:
    """A supply that a test controls."""

    def __init__(self) -> None:
        self.refilling = False
        self.dry = asyncio.Event()

    def ran_dry(self) -> None:
        self.refilling = False
        self.dry.set()


def run_of(priority: int, *, promoted_to: int = 0, **fields: Any) -> JobRun:
    job = Job(endpoint=Endpoint.COMPLETIONS, body={"prompt": "hello"}, priority=priority, **fields)
    return JobRun(job=job, delivery=cast("Any", Undelivered(promoted_to)))


class Crowd:
    """Jobs that want a slot, and the order in which they got one."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.served: list[JobRun] = []
        self.tasks: dict[JobRun, asyncio.Task[bool]] = {}

    async def come(self, *priorities: int) -> list[JobRun]:
        runs = [run_of(priority) for priority in priorities]
        await self.wait(*runs)
        return runs

    async def wait(self, *runs: JobRun) -> None:
        for run in runs:
            self.tasks[run] = asyncio.create_task(self._take(run))
        await turns()

    async def _take(self, run: JobRun) -> bool:
        taken = await self.slots.take(run)
        if taken:
            self.served.append(run)
        return taken

    async def leave(self, run: JobRun) -> None:
        self.slots.leave(run)
        await turns()

    @property
    def order(self) -> list[int]:
        return [run.job.priority for run in self.served]


async def turns() -> None:
    """Let everything happen that is due, and no time pass."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_free_slot_goes_to_the_most_urgent_and_then_to_the_first() -> None:
    crowd = Crowd(Slots(1))
    first, *_ = await crowd.come(4)
    low, high, other_high = await crowd.come(1, 7, 7)
    assert crowd.served == [first]
    for run in (first, high, other_high):
        await crowd.leave(run)
    assert crowd.served == [first, high, other_high, low]


async def test_of_equally_urgent_jobs_the_one_that_expires_soonest_comes_first() -> None:
    crowd = Crowd(Slots(1))
    first, *_ = await crowd.come(4)
    now = datetime.now(UTC)
    never, late, soon = (run_of(4, expires_at=at) for at in (None, now + HOUR, now + HOUR / 2))
    urgent = run_of(7)
    await crowd.wait(never, late, soon, urgent)
    for run in (first, urgent, soon, late):
        await crowd.leave(run)
    assert crowd.served == [first, urgent, soon, late, never]


async def test_a_promoted_job_waits_by_the_priority_of_its_message() -> None:
    crowd = Crowd(Slots(1))
    first, *_ = await crowd.come(4)
    promoted, high, urgent = run_of(1, promoted_to=8), run_of(7), run_of(9)
    await crowd.wait(high, promoted, urgent)
    for run in (first, urgent, promoted):
        await crowd.leave(run)
    assert crowd.served == [first, urgent, promoted, high]


async def test_a_job_that_is_promoted_while_it_waits_moves_up() -> None:
    crowd = Crowd(Slots(1))
    first, *_ = await crowd.come(4)
    low, high, other_high = run_of(1), run_of(7), run_of(7)
    await crowd.wait(low, high, other_high)
    low.delivery = cast("Any", Undelivered(8))
    crowd.slots.moved_up(low)
    for run in (first, low, high, other_high):
        await crowd.leave(run)
    assert crowd.served == [first, low, high, other_high]


async def test_a_slot_waits_for_the_delivery_that_is_due() -> None:
    slots, broker = Slots(1), Broker()
    slots.supply_from(broker)
    crowd = Crowd(slots)
    first, _ = await crowd.come(4, 1)
    broker.refilling = True
    await crowd.leave(first)
    assert crowd.order == [4]
    broker.refilling = False
    await crowd.come(9)
    assert crowd.order == [4, 9]


async def test_several_deliveries_are_due_after_several_ends() -> None:
    slots, broker = Slots(2), Broker()
    slots.supply_from(broker)
    crowd = Crowd(slots)
    first, second, _, _ = await crowd.come(4, 4, 1, 1)
    broker.refilling = True
    await crowd.leave(first)
    await crowd.leave(second)
    await crowd.come(5)
    assert crowd.order == [4, 4]
    broker.refilling = False
    await crowd.come(8)
    assert crowd.order == [4, 4, 8, 5]


async def test_a_slot_does_not_wait_for_a_queue_that_is_empty() -> None:
    slots, broker = Slots(1), Broker()
    slots.supply_from(broker)
    crowd = Crowd(slots)
    first, _ = await crowd.come(4, 1)
    broker.refilling = True
    await crowd.leave(first)
    await broker.dry.wait()
    await turns()
    assert crowd.order == [4, 1]


async def test_a_slot_waits_as_long_as_the_patience_says_and_no_longer() -> None:
    """Timers of one loop go off in the order of their times, however late it is."""
    slots, broker = Slots(1), Broker()
    slots.supply_from(broker)
    crowd = Crowd(slots)
    first, waits = await crowd.come(4, 1)
    broker.refilling = True
    served_before: list[bool] = []
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    slots.leave(first)
    loop.call_soon(lambda: loop.call_later(0.9 * REFILL_PATIENCE_S, note))
    loop.call_soon(lambda: loop.call_later(2 * REFILL_PATIENCE_S, lambda: (note(), over.set())))

    def note() -> None:
        served_before.append(broker.dry.is_set())

    await over.wait()
    assert served_before == [False, True]
    await turns()
    assert crowd.served == [first, waits]


async def test_nothing_is_more_urgent_than_the_most_urgent() -> None:
    slots, broker = Slots(1), Broker()
    slots.supply_from(broker)
    crowd = Crowd(slots)
    first, _ = await crowd.come(4, 9)
    broker.refilling = True
    await crowd.leave(first)
    assert crowd.order == [4, 9]


async def test_a_job_that_is_to_be_stopped_needs_no_slot() -> None:
    slots = Slots(1)
    crowd = Crowd(slots)
    first, stopped, waits = await crowd.come(4, 4, 4)
    slots.skip(stopped)
    await turns()
    assert (crowd.served, slots.taken, slots.waiting) == ([first, stopped], 1, 1)
    await crowd.leave(stopped)
    assert crowd.served == [first, stopped]
    await crowd.leave(first)
    assert crowd.served == [first, stopped, waits]


async def test_a_closed_worker_starts_nothing() -> None:
    slots = Slots(1)
    crowd = Crowd(slots)
    _, waits = await crowd.come(4, 4)
    slots.close()
    (late,) = await crowd.come(9)
    assert [await crowd.tasks[run] for run in (waits, late)] == [False, False]
    assert slots.waiting == 0


async def test_a_job_whose_task_is_cancelled_leaves_its_place_to_the_next() -> None:
    slots = Slots(1)
    crowd = Crowd(slots)
    first, gone, waits = await crowd.come(4, 7, 4)
    crowd.tasks[gone].cancel()
    with pytest.raises(asyncio.CancelledError):
        await crowd.tasks[gone]
    await crowd.leave(first)
    assert crowd.served == [first, waits]


async def test_fewer_slots_take_none_away_and_more_are_given_at_once() -> None:
    slots = Slots(2)
    crowd = Crowd(slots)
    first, second, third, _ = await crowd.come(4, 4, 4, 4)
    slots.resize(1)
    await crowd.leave(first)
    assert crowd.served == [first, second]
    await crowd.leave(second)
    assert crowd.served == [first, second, third]
    slots.resize(2)
    await turns()
    assert (len(crowd.served), slots.taken) == (4, 2)


async def test_nothing_starts_while_the_pool_is_paused_and_what_runs_goes_on() -> None:
    crowd = Crowd(Slots(2))
    running, *_ = await crowd.come(4)
    crowd.slots.pause(paused=True)
    await crowd.come(4)
    assert crowd.served == [running]
    await crowd.leave(running)
    assert crowd.served == [running]
    crowd.slots.pause(paused=False)
    await turns()
    assert len(crowd.served) == 2


async def test_a_job_that_waits_is_not_served_while_the_pool_is_paused() -> None:
    crowd = Crowd(Slots(1))
    running, waits = await crowd.come(4, 4)
    crowd.slots.pause(paused=True)
    await crowd.leave(running)
    assert crowd.served == [running]
    crowd.slots.pause(paused=False)
    await turns()
    assert crowd.served == [running, waits]
