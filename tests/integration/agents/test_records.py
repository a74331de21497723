"""The records of runs: who may write what, also if it is sent twice."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio as aioredis

from inferfleet.agents import AgentRuns
from inferfleet.schemas.names import open_runs_key, run_key, run_queue
from inferfleet.schemas.run import ModelCalled, RunState
from inferfleet.wire.redis.runs import Claimed, Held, NothingToDo, RunLostError

JOB = "01890a5d-ac96-774b-bcce-b302099a8057"
STEP = ModelCalled(job_id=JOB)


async def claimed(runs: AgentRuns, queue: str) -> tuple[str, dict[str, Any]]:
    run_id = await runs.start("tester", "go", queue=queue)
    by: dict[str, Any] = {"fence": "mine", "lease_s": 60}
    assert await runs.records.claim(run_id, runner="r", **by) == Claimed(1)
    # Sent twice.
    assert await runs.records.claim(run_id, runner="r", **by) == Claimed(1)
    return run_id, by


async def test_a_step_that_is_sent_twice_is_there_once(runs: AgentRuns, queue: str) -> None:
    run_id, by = await claimed(runs, queue)
    for _ in range(2):
        await runs.records.append(run_id, [STEP], position=0, moved_on=True, **by)
    assert await runs.steps(run_id) == [STEP]
    # A failover has forgotten a step that this runner knows.
    with pytest.raises(RunLostError):
        await runs.records.append(run_id, [STEP], position=2, moved_on=True, **by)
    with pytest.raises(RunLostError):
        await runs.records.append(run_id, [STEP], position=1, moved_on=True, fence="old", lease_s=60)
    assert await runs.steps(run_id) == [STEP]


async def test_a_run_that_was_told_something_does_not_wait(runs: AgentRuns, queue: str) -> None:
    run_id, _ = await claimed(runs, queue)
    for news in (True, False):
        assert await runs.records.tell(run_id, "answer:0.0:1", "yes") == (RunState.RUNNING, news)
    await runs.records.tell(run_id, "answer:0.0:1", "no")
    assert await runs.records.inbox(run_id) == {"answer:0.0:1": b"yes"}
    for told, state in ((0, RunState.RUNNING), (1, RunState.WAITING)):
        assert await runs.records.settle(run_id, RunState.WAITING, fence="mine", told=told) is state
    # A timeout that comes while the run is about to wait does not end it.
    assert await runs.records.settle(run_id, RunState.FAILED, fence="mine", told=1) is RunState.WAITING
    assert isinstance(await runs.records.claim(run_id, fence="other", runner="r", lease_s=60), NothingToDo)
    assert await runs.records.tell(run_id, "cancel", "") == (RunState.QUEUED, True)
    with pytest.raises(RunLostError):
        await runs.records.append(run_id, [], position=0, moved_on=False, fence="mine", lease_s=60)


async def test_a_run_that_is_told_the_same_again_is_published_once(runs: AgentRuns, queue: str) -> None:
    run_id, _ = await claimed(runs, queue)
    await runs.records.settle(run_id, RunState.WAITING, fence="mine", told=0)
    published = await runs.fleet.publisher.waiting(run_queue(queue))
    assert published == 1
    for _ in range(3):
        assert await runs.cancel(run_id) is RunState.QUEUED
    assert await runs.fleet.publisher.waiting(run_queue(queue)) == published + 1


async def test_a_run_has_one_runner(runs: AgentRuns, queue: str) -> None:
    run_id, _ = await claimed(runs, queue)
    held = await runs.records.claim(run_id, fence="other", runner="r", lease_s=60)
    assert isinstance(held, Held)
    assert 0 < held.left_s <= 60
    await runs.records.settle(run_id, RunState.QUEUED, fence="mine", told=0)
    assert await runs.records.claim(run_id, fence="other", runner="r", lease_s=60) == Claimed(1)
    with pytest.raises(RunLostError):
        await runs.records.settle(run_id, RunState.SUCCEEDED, fence="mine", told=0)


async def test_nobody_leaves_an_unfinished_run_alone_until_its_deadline(
    runs: AgentRuns, queue: str, store: aioredis.Redis
) -> None:
    run_id, _ = await claimed(runs, queue)
    deadline_ms = runs.records.now_ms() + 24 * 3600 * 1000
    for at_ms, kept in ((1, True), (deadline_ms, False)):
        await runs.records.look_at(queue, run_id, at_ms=at_ms)
        assert (await store.zscore(open_runs_key(queue), run_id) == at_ms) is kept


async def test_a_clock_that_is_set_back_makes_no_lease_longer(
    runs: AgentRuns, store: aioredis.Redis, queue: str
) -> None:
    run_id, _ = await claimed(runs, queue)
    lease: Any = await store.hget(run_key(run_id), "lease_until")
    await store.hset(run_key(run_id), "lease_until", int(lease) + 3600_000)
    held = await runs.records.claim(run_id, fence="other", runner="r", lease_s=5)
    assert isinstance(held, Held)
    assert held.left_s <= 5
    await store.hset(run_key(run_id), "lease_until", 0)
    assert await runs.records.claim(run_id, fence="other", runner="r", lease_s=5) == Claimed(2)
