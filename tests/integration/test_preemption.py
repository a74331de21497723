"""An urgent job does not wait for a slot: another job gives it its own, and goes on later."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    assert_whole,
    chat,
    eventually,
    journal_of,
    slow_chat,
    text_of,
    until_tokens,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState, Priority, Result

STEP_S = 0.02
LONG = 150
"""Tokens of an answer that takes 3 s."""


def long_chat(name: str, **more: Any) -> dict[str, Any]:
    return slow_chat(name, tokens=LONG, step_s=STEP_S, **more)


def urgent_chat() -> dict[str, Any]:
    return slow_chat("urgent", tokens=3, step_s=STEP_S)


async def until_full(fleet: Fleet, *, running: int, held: int = 0) -> None:
    async def is_full() -> bool:
        return any((it.running, it.held) == (running, held) for it in await fleet.workers())

    await eventually(is_full)


def text_in(result: Result) -> str:
    assert result.response is not None
    return str(result.response["choices"][0]["message"]["content"])


async def ends(fleet: Fleet, jobs: list[Job]) -> list[Job]:
    """The jobs in the order of their ends."""
    order = [result.job_id async for result in fleet.as_completed(jobs, timeout_s=PATIENCE_S)]
    return sorted(jobs, key=lambda job: order.index(job.id))


@pytest.mark.parametrize("look_ahead", [0, 8])
@pytest.mark.parametrize("backlog", [0, 20])
async def test_an_urgent_job_ends_before_the_ones_that_ran(
    fleet: Fleet, pool: str, start_worker: StartWorker, look_ahead: int, backlog: int, store: aioredis.Redis
) -> None:
    """With a backlog and a full prefetch, RabbitMQ delivers nothing by itself."""
    await start_worker(
        max_running=2, look_ahead=look_ahead, preempt_min_run_s=0.0, heartbeat_interval_s=0.05
    )
    first = await fleet.submit_many([long_chat(f"first {i}") for i in range(2)], pool=pool)
    for job in first:
        await until_tokens(fleet, job)
    waiting = await fleet.submit_many([chat(f"waiting {i}") for i in range(backlog)], pool=pool)
    await until_full(fleet, running=2, held=min(look_ahead, backlog))
    urgent = await fleet.submit(urgent_chat(), pool=pool, priority=Priority.URGENT)
    assert (await ends(fleet, [*first, *waiting, urgent]))[0] is urgent
    for result, job in zip(await fleet.wait_many([*first, urgent]), [*first, urgent], strict=True):
        assert (result.state, result.attempts) == (JobState.SUCCEEDED, 1)
        assert text_in(result) == answer_to(job)
        entries = await journal_of(store, job)
        assert_whole(entries)
        assert text_of(entries) == answer_to(job)
