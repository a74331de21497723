"""A share of the starts goes to the job that has waited longest, whatever its priority."""

from __future__ import annotations

import aiohttp
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorker,
    answer_to,
    chat,
    eventually,
    journal_of,
    slow_chat,
)
from tests.matrix import Cell

from inferfleet.local.services.free_port import free_port
from inferfleet.producer import Fleet
from inferfleet.producer.timeline import EventKind
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.worker import ageing

pytestmark = pytest.mark.matrix

HIGH = 40


@pytest.fixture(autouse=True)
def promote_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs may be promoted however short they have waited."""
    monkeypatch.setattr(ageing, "MIN_WAIT_S", 0.0)
    monkeypatch.setattr(ageing, "PAUSE_S", 0.05)


@pytest.fixture
def strict_order(cell: Cell | None) -> None:
    """The queue delivers the most urgent job first. Without that, promoted jobs come last."""
    if cell is not None and cell.priorities < 10:
        pytest.skip(f"a queue of {cell} does not tell ten priorities apart")


async def high_jobs(fleet: Fleet, pool: str) -> list[Job]:
    bodies = [slow_chat(f"high {number}", tokens=2, step_s=0.02) for number in range(HIGH)]
    return await fleet.submit_many(bodies, pool=pool, priority=7)


async def ends(fleet: Fleet, jobs: list[Job]) -> list[str]:
    """The jobs in the order of their ends."""
    order = [result.job_id async for result in fleet.as_completed(jobs, timeout_s=PATIENCE_S)]
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    for job, result in zip(jobs, results, strict=True):
        assert job.session_id or result.text == answer_to(job)
    return order


@pytest.mark.usefixtures("strict_order")
@pytest.mark.parametrize(("share", "at_least", "at_most"), [(0.25, 8, 13), (0.1, 3, 5), (0.0, 0, 0)])
async def test_jobs_of_the_lowest_priority_get_their_share_of_the_starts(
    fleet: Fleet,
    pool: str,
    start_worker: StartWorker,
    foreign: ForeignClient,
    share: float,
    at_least: int,
    at_most: int,
) -> None:
    port = free_port()
    await fleet.declare_pool(pool)
    low = await fleet.submit_many(
        [slow_chat(f"low {number}", tokens=2, step_s=0.02) for number in range(HIGH)], pool=pool, priority=1
    )
    high = await high_jobs(fleet, pool)
    await start_worker(max_running=1, look_ahead=1, oldest_share=share, http_port=port)
    order = await ends(fleet, [*low, *high])
    last_high = max(order.index(job.id) for job in high)
    overtook = [job for job in low if order.index(job.id) < last_high]
    assert at_least <= len(overtook) <= at_most
    # The oldest first.
    assert overtook == low[: len(overtook)]
    stories = {job.id: [event.kind for event in await fleet.timeline(job)] for job in low}
    promoted = [job_id for job_id, story in stories.items() if EventKind.PROMOTED in story]
    assert {job.id for job in overtook} <= set(promoted)
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as answer:
        expected = f'inferfleet_jobs_promoted_total{{pool="{pool}"}} {len(promoted)}.0'
        assert expected in await answer.text()

    async def is_empty() -> bool:
        """The other message of each promoted job is acked."""
        return await foreign.waiting() == 0

    await eventually(is_empty)


async def test_the_job_that_has_waited_longest_is_promoted_first_whatever_its_priority(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    await fleet.declare_pool(pool)
    waiting = [await fleet.submit(chat(str(it)), pool=pool, priority=it) for it in (3, 0, 2, 1)]
    high = await high_jobs(fleet, pool)
    await start_worker(max_running=1, look_ahead=0, oldest_share=0.2)
    order = await ends(fleet, [*waiting, *high])
    assert sorted(waiting, key=lambda job: order.index(job.id)) == waiting
    assert order.index(waiting[-1].id) < order.index(high[-1].id)


async def test_a_turn_is_not_promoted_past_the_one_before_it(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    await fleet.declare_pool(pool)
    turns = [
        await fleet.submit(chat(f"turn {number}"), pool=pool, priority=1, session_id=pool)
        for number in range(3)
    ]
    high = await high_jobs(fleet, pool)
    await start_worker(max_running=1, look_ahead=0, oldest_share=0.25)
    order = await ends(fleet, [*turns, *high])
    assert sorted(turns, key=lambda job: order.index(job.id)) == turns
    assert order.index(turns[0].id) < order.index(high[-1].id)


async def test_a_promoted_job_does_not_make_others_look_lost(
    fleet: Fleet, pool: str, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    """It comes before those of its priority that were published earlier and later."""
    await fleet.declare_pool(pool)
    low = [await fleet.submit(chat(f"low {number}"), pool=pool, priority=1) for number in range(20)]
    high = await high_jobs(fleet, pool)
    await start_worker(max_running=1, look_ahead=0, oldest_share=0.2, sweep_interval_s=0.2, lease_s=1)
    await ends(fleet, [*low, *high])
    for job in [*low, *high]:
        entries = await journal_of(store, job)
        assert not [entry for entry in entries if isinstance(entry, QueuedEntry) and entry.republished]


@pytest.mark.usefixtures("strict_order")
async def test_a_job_whose_promoted_message_waits_is_not_promoted_again(
    fleet: Fleet, pool: str, start_worker: StartWorker
) -> None:
    """Jobs that preempt come before it."""
    await fleet.declare_pool(pool)
    low = await fleet.submit(chat("low"), pool=pool, priority=1)
    bodies = [slow_chat(f"urgent {number}", tokens=2, step_s=0.02) for number in range(HIGH)]
    urgent = await fleet.submit_many(bodies, pool=pool, priority=9)
    await start_worker(max_running=1, look_ahead=0, oldest_share=0.25)
    order = await ends(fleet, [low, *urgent])
    assert order[-1] == low.id
    assert [event.kind for event in await fleet.timeline(low)].count(EventKind.PROMOTED) == 1


@pytest.mark.usefixtures("strict_order")
async def test_jobs_that_a_worker_holds_already_are_promoted_there(
    fleet: Fleet, pool: str, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    await start_worker(max_running=1, look_ahead=4, oldest_share=0.25, heartbeat_interval_s=0.05)
    running = await fleet.submit(slow_chat("first", tokens=100_000, step_s=0.02), pool=pool, priority=1)
    held = [await fleet.submit(chat(f"held {number}"), pool=pool, priority=1) for number in range(4)]

    async def are_held() -> bool:
        return any((it.running, it.held) == (1, 4) for it in await fleet.workers())

    await eventually(are_held)
    high = await high_jobs(fleet, pool)
    await fleet.cancel(running)
    order = await ends(fleet, [*held, *high])
    assert max(order.index(job.id) for job in held) < order.index(high[-1].id)
