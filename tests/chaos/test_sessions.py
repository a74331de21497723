"""Many conversations at once, while workers are killed: every history is exact.

The size in CI is small; ``INFERFLEET_SOAK_SESSIONS=200 INFERFLEET_SOAK_TURNS=20`` is the full one.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from inferfleet.local.chaos.harness import Harness
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas import Endpoint, Job, JobState
from inferfleet.schemas.journal import FinishedEntry
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker.engines.simulated import expected_text

SESSIONS = int(os.environ.get("INFERFLEET_SOAK_SESSIONS", "40"))
TURNS = int(os.environ.get("INFERFLEET_SOAK_TURNS", "8"))
PRODUCERS = 4
WORKERS = 4
KILL_EVERY_S = float(os.environ.get("INFERFLEET_SOAK_KILL_EVERY_S", "1"))
WORKER: dict[str, Any] = {"engine_args": {"speed": 2}, "max_running": 32, "look_ahead": 4, "lease_s": 1.5}
WAIT_S = 60.0 + SESSIONS * TURNS / 10


@pytest.mark.timeout(2 * WAIT_S)
async def test_conversations_stay_exact_while_workers_are_killed(harness: Harness) -> None:
    # Given four producers and four workers
    members = await harness.workers(WORKERS, **WORKER)
    settings = ProducerSettings(
        amqp_url=harness.services.amqp_url,
        redis_url=harness.services.redis_url,
        patience_s=30.0,
        state_check_interval_s=1.0,
    )
    async with AsyncExitStack() as stack:
        fleets = [
            await stack.enter_async_context(Fleet.connect(settings.model_copy(update={"client_id": f"p{n}"})))
            for n in range(PRODUCERS)
        ]
        kills = 0

        async def kill_now_and_then() -> None:
            nonlocal kills
            chance = random.Random(4)
            while True:
                await asyncio.sleep(KILL_EVERY_S)
                victim = chance.randrange(WORKERS)
                await members[victim].crash()
                kills += 1
                members[victim] = harness.launch(await harness.link(), **WORKER)

        # When each session's turns are submitted one after the other, each by another producer
        async def talk(number: int) -> list[Job]:
            return [
                await fleets[(number + turn) % PRODUCERS].submit(
                    {"messages": [{"role": "user", "content": f"turn {turn} of {number}"}], "max_tokens": 20},
                    session_id=f"{harness.pool}-{number}",
                    pool=harness.pool,
                )
                for turn in range(TURNS)
            ]

        killing = asyncio.create_task(kill_now_and_then())
        try:
            talks = await asyncio.gather(*map(talk, range(SESSIONS)))
            jobs = [job for jobs in talks for job in jobs]
            results = await fleets[0].wait_many(jobs, timeout_s=WAIT_S)
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)

        # Then all have succeeded, once, and every history is its turns in order
        print(f"{len(jobs)} turns, {kills} kills")  # noqa: T201 - what a soak has done
        assert kills >= 2
        assert {result.state for result in results} == {JobState.SUCCEEDED}
        for number in range(SESSIONS):
            session = fleets[0].session(f"{harness.pool}-{number}")
            assert await session.history() == _expected(number)
            assert [turn.job_id for turn in await session.turns()] == [job.id for job in talks[number]]
        for job in jobs:
            ends = [entry for entry in await harness.journal(job.id) if isinstance(entry, FinishedEntry)]
            assert len(ends) == 1
        # And no lane is left with an owner.
        for number in range(SESSIONS):
            idle = partial(_is_idle, fleets[0].session(f"{harness.pool}-{number}"))
            await harness.until(idle, what=f"session {number} is idle")


async def _is_idle(session: Session) -> bool:
    record = await session.get()
    return record is not None and record.owner is None and not record.waiting


def _expected(number: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"turn {turn} of {number}"})
        text = expected_text(Endpoint.CHAT, {"messages": messages, "max_tokens": 20})
        messages.append({"role": "assistant", "content": text})
    return messages
