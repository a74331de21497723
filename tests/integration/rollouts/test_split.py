"""A rollout splits the jobs of a pool: all producers follow its rule, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    record_of,
    slow_chat,
    unfinished,
    until_running,
)
from tests.integration.rollouts.conftest import SetWeight, some, until_followed

from inferfleet.producer import Fleet
from inferfleet.producer.openai.models import Models
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.message import read_job
from inferfleet.schemas.rollout import RolloutRule
from inferfleet.wire.redis.job_listing import count_unfinished
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.rollouts import read_rules


async def pools_of(fleet: Fleet, jobs: Sequence[Job]) -> dict[str, int]:
    """Count the jobs by the pools in their records, which must be those that were returned."""
    records = await fleet.get_many(jobs)
    pools = [record_of(records, job).pool for job in jobs]
    assert pools == [job.pool for job in jobs]
    return {pool: pools.count(pool) for pool in set(pools)}


async def test_a_share_of_the_jobs_goes_to_the_canary_and_record_and_message_say_so(
    fleet: Fleet, records: JobRecords, store: aioredis.Redis, pool: str, canary: str, set_weight: SetWeight
) -> None:
    await set_weight(25)
    jobs = await fleet.submit_many(some(pool, 400))

    share = await pools_of(fleet, jobs)
    # Five standard deviations of 400 draws.
    assert abs(share[canary] - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5
    moved = next(job for job in jobs if job.pool == canary)
    assert record_of(await fleet.get_many([moved]), moved).submitted_to == pool
    message = read_job(await records.request(moved.id) or b"")
    assert (message.pool, message.submitted_to) == (canary, pool)
    stayed = next(job for job in jobs if job.pool == pool)
    assert record_of(await fleet.get_many([stayed]), stayed).submitted_to is None
    assert (await fleet.pool(canary)).ready == share[canary]
    assert set(await unfinished(store, canary)) == {job.id for job in jobs if job.pool == canary}


async def test_every_producer_follows_a_change_and_does_not_read_the_rule_for_each_job(
    connect: Connect, fleet: Fleet, store: aioredis.Redis, pool: str, canary: str, set_weight: SetWeight
) -> None:
    async with connect() as other:
        for client in (fleet, other):
            assert set(await pools_of(fleet, await client.submit_many(some(pool, 20)))) == {pool}
        await set_weight(100)
        for client in (fleet, other):
            await until_followed(client, pool, RolloutRule(to=canary, weight=100))
            assert set(await pools_of(fleet, await client.submit_many(some(pool, 20)))) == {canary}


async def test_the_rule_is_read_once_for_many_jobs_and_never_by_a_client_that_submits_nothing(
    fleet: Fleet, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    enqueue = CommandPipeline.enqueue

    def noting(self: CommandPipeline, *command: str) -> Any:
        if command[0] == "HGET" and command[2] == "rollout":
            asked.append(command)
        return enqueue(self, *command)

    monkeypatch.setattr(CommandPipeline, "enqueue", noting)
    monkeypatch.setattr("inferfleet.producer.routing.FRESH_S", PATIENCE_S)
    await fleet.submit_many(some(pool, 200))
    await fleet.submit_many(some(pool, 200))
    assert len(asked) == 1


async def test_the_same_key_finds_its_job_in_the_pool_where_it_is_whatever_the_weight_is_by_now(
    connect: Connect, fleet: Fleet, pool: str, canary: str, set_weight: SetWeight
) -> None:
    first = [await fleet.submit(chat(), pool=pool, idempotency_key=f"{pool}-{n}") for n in range(5)]
    await set_weight(100)
    async with connect() as other:
        again = [await other.submit(chat(), pool=pool, idempotency_key=f"{pool}-{n}") for n in range(5)]
    assert [(job.id, job.pool) for job in again] == [(job.id, pool) for job in first]


async def test_a_job_whose_producer_died_before_it_was_published_stays_in_the_pool_of_its_record(
    connect: Connect,
    fleet: Fleet,
    store: aioredis.Redis,
    pipeline: CommandPipeline,
    records: JobRecords,
    pool: str,
    canary: str,
    set_weight: SetWeight,
) -> None:
    job = Job(pool=pool, body=chat())
    await records.create(job, reply_to="gone", call="died", request=b"")
    await set_weight(100)

    async with connect() as other:
        accepted = await other.submit(job)

    assert accepted.pool == pool
    assert (await fleet.pool(pool)).ready == 1
    assert (await fleet.pool(canary)).ready == 0

    async def left() -> bool:
        return not await count_unfinished(pipeline, canary)

    await eventually(left)
    assert await unfinished(store, pool) == [job.id]


async def test_a_session_that_changes_sides_runs_its_turns_in_order(
    fleet: Fleet, start_worker: StartWorker, pool: str, canary: str, set_weight: SetWeight
) -> None:
    await start_worker()
    await start_worker(pool=canary)
    session = f"s-{pool}"
    first = await fleet.submit(slow_chat("one", tokens=40, step_s=0.05), pool=pool, session_id=session)
    await until_running(fleet, first)
    second = await fleet.submit(chat("two"), pool=pool, session_id=session)
    await set_weight(100)
    third = await fleet.submit(slow_chat("three", tokens=20, step_s=0.05), pool=pool, session_id=session)
    await set_weight(0)
    fourth = await fleet.submit(chat("four"), pool=pool, session_id=session)

    turns = [first, second, third, fourth]
    assert [job.pool for job in turns] == [pool, pool, canary, pool]
    results = await fleet.wait_many(turns, timeout_s=PATIENCE_S)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    said = await fleet.session(session).turns()
    assert [turn.job_id for turn in said] == [job.id for job in turns]


async def test_a_request_that_names_the_model_of_both_pools_is_submitted_to_the_one_that_has_the_rollout(
    fleet: Fleet,
    pipeline: CommandPipeline,
    start_worker: StartWorker,
    pool: str,
    canary: str,
    set_weight: SetWeight,
) -> None:
    await start_worker(heartbeat_interval_s=0.05)
    await start_worker(pool=canary, worker_id=f"a-{canary}", heartbeat_interval_s=0.05)
    await set_weight(5)
    # Listed, as it is while it has workers.
    await fleet.submit(chat(), pool=pool)

    async def routed() -> bool:
        rules = await read_rules(pipeline)

        async def read() -> dict[str, RolloutRule]:
            return rules

        alive = [worker for worker in await fleet.workers() if worker.pool in {pool, canary}]

        async def workers() -> Any:
            return alive

        if len(alive) < 2 or pool not in rules:
            return False
        route = await Models(workers, rules=read, pool="none").route("simulated", pool=None)
        assert route.pool == pool
        return True

    await eventually(routed)


async def test_a_request_that_is_sent_again_with_its_key_is_no_conflict_although_its_job_is_in_the_canary(
    fleet: Fleet,
    start_worker: StartWorker,
    start_gateway: StartGateway,
    pool: str,
    canary: str,
    set_weight: SetWeight,
) -> None:
    await start_worker(pool=canary)
    await set_weight(100)
    gateway = await start_gateway()
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        answers = [
            await http.post(
                "/v1/chat/completions",
                json={"model": pool, **chat()},
                headers={"Idempotency-Key": f"key-{pool}"},
            )
            for _ in range(2)
        ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    record = await fleet.find(f"key-{pool}")
    assert record is not None
    assert (record.pool, record.submitted_to) == (canary, pool)


async def test_a_dead_letter_of_the_canary_is_submitted_again_to_the_pool_it_was_meant_for(
    fleet: Fleet, start_worker: StartWorker, pool: str, canary: str, set_weight: SetWeight
) -> None:
    await start_worker(pool=canary)
    await set_weight(100)
    fails = chat(simulated={"fail": "out_of_memory"})
    failed = await fleet.submit(fails, pool=pool, max_attempts=1)
    assert failed.pool == canary
    await fleet.wait(failed, timeout_s=PATIENCE_S)
    await set_weight(0)

    (again,) = await fleet.dead_letters.replay(canary, everything=True)

    assert (again.pool, again.submitted_to) == (pool, None)
