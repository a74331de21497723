"""When jobs are expected to start, by the lengths of earlier answers, and who is told that it is too late."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    slow_chat,
    until_running,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import Job
from inferfleet.schemas.errors import InvalidJobError, PartialSubmitError, TooLateError
from inferfleet.schemas.job import OnLate
from inferfleet.schemas.names import job_key
from inferfleet.wire.redis.records import JobRecords

SHORT, LONG = 4, 2000
"""Tokens of answers, which the simulated engine generates at once."""


def short() -> dict[str, Any]:
    return chat(max_tokens=SHORT, simulated={"tokens": SHORT})


def long() -> dict[str, Any]:
    return chat(max_tokens=LONG, simulated={"tokens": LONG})


async def with_a_backlog(fleet: Fleet, start_worker: StartWorker, pool: str, *, waiting: int) -> list[Job]:
    """Let a worker end 10 short and 10 long jobs, and run one that does not end, before long ones."""
    await start_worker(max_running=1, look_ahead=0, heartbeat_interval_s=0.05)
    ended = await fleet.submit_many(Job(pool=pool, body=body) for body in (short(), long()) * 10)
    await fleet.wait_many(ended, timeout_s=PATIENCE_S)
    running = await fleet.submit(slow_chat(tokens=1000, step_s=0.1), pool=pool, priority=9)
    await until_running(fleet, running)
    jobs = await fleet.submit_many(Job(pool=pool, body=long(), priority=5) for _ in range(waiting))

    async def known() -> bool:
        # A busy machine may hold up the worker's heartbeats until they expire.
        return any(
            worker.running == 1 and worker.mean_job is not None and worker.mean_job.jobs >= 20
            for worker in (await fleet.pool(pool)).workers
        )

    await eventually(known)
    return jobs


async def test_a_start_is_estimated_by_the_lengths_of_earlier_answers(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    jobs = await with_a_backlog(fleet, start_worker, pool, waiting=8)
    last = await fleet.submit(short(), pool=pool)

    async def only_unfinished_are_ahead() -> bool:
        return (await fleet.position(last)).ahead == 9

    await eventually(only_unfinished_are_ahead)
    (worker,) = (await fleet.pool(pool)).workers
    assert worker.mean_job is not None
    # The jobs that have ended were half as long in the mean as the eight that wait ahead.
    expected_s = 9 * 2 * worker.mean_job.seconds

    async def lengths_count() -> bool:
        return (await fleet.position(last)).starts_in_s == pytest.approx(expected_s, rel=0.1)

    # Estimates of the same second share what they read.
    await eventually(lengths_count)
    # Jobs of older versions do not have their size.
    for job in (*jobs, last):
        await store.hdel(job_key(job.id), "size")

    async def all_count_as_alike() -> bool:
        return (await fleet.position(last)).starts_in_s == pytest.approx(expected_s / 2, rel=0.1)

    await eventually(all_count_as_alike)


async def test_a_job_that_would_expire_before_it_starts_is_refused_if_it_asks_for_that(
    fleet: Fleet, start_worker: StartWorker, start_gateway: StartGateway, records: JobRecords, pool: str
) -> None:
    async def expiring(seconds: float, **options: Any) -> Job:
        return await fleet.submit(short(), pool=pool, expires_at=await later(seconds), **options)

    async def later(seconds: float) -> datetime:
        return fleet.pipeline.clock.now() + timedelta(seconds=seconds)

    # Without a worker nobody knows.
    soon = await later(3600)
    early = await fleet.submit(
        short(), pool=pool, priority=0, expires_at=soon, on_late="reject", idempotency_key=f"early-{pool}"
    )
    await with_a_backlog(fleet, start_worker, pool, waiting=2000)
    await expiring(60)
    await expiring(60, priority=9, on_late="reject")
    before = await fleet.pool(pool)
    with pytest.raises(
        TooLateError, match=r"on_late: .* priority 4 may start in \d+ s .* expires in \d+ s"
    ) as late:
        await expiring(20, on_late="reject", idempotency_key=f"late-{pool}")
    assert late.value.starts_in_s > 20
    assert await fleet.find(f"late-{pool}") is None
    gateway = await start_gateway()
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        asked = {"body": short(), "expires_at": (await later(20)).isoformat(), "on_late": "reject"}
        answer = await http.post("/v1/jobs", json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_late")
    again = await fleet.submit(
        short(), pool=pool, priority=0, expires_at=soon, on_late="reject", idempotency_key=f"early-{pool}"
    )
    assert again.id == early.id
    # Another caller may have published the job: only who has made its record may refuse it.
    doubtful = Job(pool=pool, body=short(), expires_at=await later(20), on_late=OnLate.REJECT)
    await records.create(doubtful, reply_to="", call="another")
    assert (await fleet.submit(doubtful)).id == doubtful.id
    await fleet.cancel(doubtful)

    async def nothing_was_left() -> bool:
        return (await fleet.pool(pool)).unfinished == before.unfinished

    await eventually(nothing_was_left)


async def test_a_job_that_never_expires_cannot_be_late(fleet: Fleet, pool: str) -> None:
    with pytest.raises(InvalidJobError, match=r"on_late: .*expires_at"):
        await fleet.submit(short(), pool=pool, on_late="reject")
    with pytest.raises(InvalidJobError, match=r"on_late: .*'accept' or 'reject'"):
        await fleet.submit(short(), pool=pool, on_late="maybe")


async def test_a_free_slot_is_no_wait_however_seldom_jobs_end(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(max_running=4, heartbeat_interval_s=0.05)
    long_ago = await fleet.submit(slow_chat(tokens=20, step_s=0.1), pool=pool)
    await fleet.wait(long_ago, timeout_s=PATIENCE_S)

    async def idle() -> bool:
        workers = (await fleet.pool(pool)).workers
        return any(worker.mean_job is not None and not worker.running for worker in workers)

    await eventually(idle)
    # Four take two seconds at a time, so of two hundred the last would start after a hundred seconds.
    soon = fleet.pipeline.clock.now() + timedelta(seconds=30)
    slow = slow_chat(tokens=20, step_s=0.1)
    late = [Job(pool=pool, body=slow, expires_at=soon, on_late=OnLate.REJECT) for _ in range(200)]
    with pytest.raises(PartialSubmitError) as refused:
        await fleet.submit_many(late)
    assert len(refused.value.accepted) >= 4
    assert all(isinstance(error, TooLateError) for error in refused.value.rejected.values())
