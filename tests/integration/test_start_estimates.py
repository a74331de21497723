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
from inferfleet.schemas.errors import InvalidJobError, TooLateError
from inferfleet.schemas.names import job_key

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
        (worker,) = (await fleet.pool(pool)).workers
        return worker.running == 1 and worker.work_per_s > 0

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
    behind = await fleet.position(last)
    assert behind.starts_in_s is not None
    # The jobs that have ended were half as long in the mean as those that wait.
    each = (behind.starts_in_s * behind.finished_per_s - 1) / 8
    assert each == pytest.approx(2, rel=0.15)
    # Jobs of older versions do not have their size.
    for job in (*jobs, last):
        await store.hdel(job_key(job.id), "size")
    behind = await fleet.position(last)
    assert behind.starts_in_s == pytest.approx(9 / behind.finished_per_s, rel=0.01)


async def test_a_job_that_would_expire_before_it_starts_is_refused_if_it_asks_for_that(
    fleet: Fleet, start_worker: StartWorker, start_gateway: StartGateway, pool: str
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

    async def nothing_was_left() -> bool:
        return (await fleet.pool(pool)).unfinished == before.unfinished

    await eventually(nothing_was_left)


async def test_a_job_that_never_expires_cannot_be_late(fleet: Fleet, pool: str) -> None:
    with pytest.raises(InvalidJobError, match=r"on_late: .*expires_at"):
        await fleet.submit(short(), pool=pool, on_late="reject")
    with pytest.raises(InvalidJobError, match=r"on_late: .*'accept' or 'reject'"):
        await fleet.submit(short(), pool=pool, on_late="maybe")
