"""Many conversations at once, while workers are killed: every history is exact.

The size in CI is small; ``INFERFLEET_SOAK_SESSIONS=200 INFERFLEET_SOAK_TURNS=20`` is the full one.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest

from inferfleet.local.chaos.harness import Harness
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas import Endpoint, Job, JobState
from inferfleet.schemas.errors import SessionBusyError
from inferfleet.schemas.job import OnBusy
from inferfleet.schemas.journal import FinishedEntry
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker.engines.simulated import expected_text

SESSIONS = int(os.environ.get("INFERFLEET_SOAK_SESSIONS", "40"))
TURNS = int(os.environ.get("INFERFLEET_SOAK_TURNS", "8"))
PRODUCERS = 4
WORKERS = 4
KILL_EVERY_S = float(os.environ.get("INFERFLEET_SOAK_KILL_EVERY_S", "0.5"))
WORKER: dict[str, Any] = {"engine_args": {"speed": 0.5}, "max_running": 32, "look_ahead": 4, "lease_s": 1.5}
WAIT_S = 180.0 + SESSIONS * TURNS / 10


@pytest.fixture
async def fleets(harness: Harness) -> AsyncIterator[list[Fleet]]:
    """Four producers."""
    settings = ProducerSettings(
        amqp_url=harness.services.amqp_url,
        redis_url=harness.services.redis_url,
        patience_s=30.0,
        state_check_interval_s=1.0,
    )
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Fleet.connect(settings.model_copy(update={"client_id": f"p{n}"})))
            for n in range(PRODUCERS)
        ]


@asynccontextmanager
async def workers_that_are_killed(harness: Harness, *, warm_wait_s: float = 0.0) -> AsyncIterator[list[int]]:
    """Four workers, of which one after the other is killed and replaced. Yields the victims so far."""
    settings = WORKER | {"warm_wait_s": warm_wait_s}
    members = await harness.workers(WORKERS, **settings)
    victims: list[int] = []

    async def kill_now_and_then() -> None:
        rng = random.Random(4)
        while True:
            await asyncio.sleep(KILL_EVERY_S)
            victim = rng.randrange(WORKERS)
            await members[victim].crash()
            victims.append(victim)
            members[victim] = harness.launch(await harness.link(), **settings)

    killing = asyncio.create_task(kill_now_and_then())
    try:
        yield victims
        assert len(victims) >= 2
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)


@pytest.mark.timeout(2 * WAIT_S)
async def test_conversations_stay_exact_while_workers_are_killed(
    harness: Harness, fleets: list[Fleet]
) -> None:
    # When each session's turns are submitted one after the other, each by another producer
    async def talk(number: int) -> list[Job]:
        return [
            await fleets[(number + turn) % PRODUCERS].submit(
                _request(number, turn), session_id=_session_id(harness, number), pool=harness.pool
            )
            for turn in range(TURNS)
        ]

    async with workers_that_are_killed(harness) as victims:
        talks = await asyncio.gather(*map(talk, range(SESSIONS)))
        jobs = [job for jobs in talks for job in jobs]
        results = await fleets[0].wait_many(jobs, timeout_s=WAIT_S)

    # Then all have succeeded, once, and every history is its turns in order
    print(f"{len(jobs)} turns, {len(victims)} kills")  # noqa: T201 - what a soak has done
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    for number in range(SESSIONS):
        session = fleets[0].session(_session_id(harness, number))
        assert await session.history() == _expected(number, range(TURNS))
        assert [turn.job_id for turn in await session.turns()] == [job.id for job in talks[number]]
        # And no lane is left with an owner.
        await harness.until(partial(_is_idle, session), what=f"session {number} is idle")
    await _require_one_end_each(harness, jobs)


@pytest.mark.store
@pytest.mark.matrix
@pytest.mark.timeout(2 * WAIT_S)
@pytest.mark.parametrize("warm_wait_s", [0.0, 0.5])
async def test_a_history_is_what_its_turns_ended_as_whatever_is_stopped_or_killed(
    harness: Harness, fleets: list[Fleet], warm_wait_s: float
) -> None:
    # When turns are submitted with every manner of double texting, and some are cancelled
    async def talk(number: int) -> list[Job]:
        rng = random.Random(number)
        jobs: list[Job] = []
        for turn in range(TURNS):
            await asyncio.sleep(rng.choice((0, 0, 0.1, 0.4)))
            with suppress(SessionBusyError):
                job = await fleets[(number + turn) % PRODUCERS].submit(
                    _request(number, turn),
                    session_id=_session_id(harness, number),
                    on_busy=rng.choice(list(OnBusy)),
                    pool=harness.pool,
                    stream=True,
                    metadata={"turn": str(turn)},
                )
                jobs.append(job)
                if rng.random() < 0.15:
                    await fleets[0].cancel(job)
        return jobs

    async with workers_that_are_killed(harness, warm_wait_s=warm_wait_s) as victims:
        talks = await asyncio.gather(*map(talk, range(SESSIONS)))
        jobs = [job for jobs in talks for job in jobs]
        results = {result.job_id: result for result in await fleets[0].wait_many(jobs, timeout_s=WAIT_S)}

    # Then a history has the turns that succeeded and those that were interrupted, in order, with their texts
    states = Counter(result.state.value for result in results.values())
    print(f"{len(jobs)} turns, {len(victims)} kills, {dict(states)}")  # noqa: T201 - what a soak has done
    assert states.keys() == {"succeeded", "cancelled"}
    for number, jobs_of_talk in enumerate(talks):
        session = fleets[0].session(_session_id(harness, number))
        await harness.until(partial(_is_idle, session), what=f"session {number} is idle")
        turns = await session.turns()
        said = [turn.job_id for turn in turns]
        assert said == [job.id for job in jobs_of_talk if job.id in set(said)], "in order, and once"
        for job in jobs_of_talk:
            if results[job.id].state is JobState.SUCCEEDED:
                assert job.id in said
        messages: list[dict[str, Any]] = []
        for turn in turns:
            result = results[turn.job_id]
            assert turn.interrupted is (result.state is JobState.CANCELLED)
            text = expected_text(Endpoint.CHAT, {"messages": [*messages, turn.messages[0]], "max_tokens": 20})
            assert text.startswith(result.text) if turn.interrupted else text == result.text
            assert turn.messages[-1] == {"role": "assistant", "content": result.text}
            messages += turn.messages
    await _require_one_end_each(harness, jobs)


async def _is_idle(session: Session) -> bool:
    record = await session.get()
    return record is not None and record.owner is None and not record.waiting


async def _require_one_end_each(harness: Harness, jobs: list[Job]) -> None:
    for job in jobs:
        ends = [entry for entry in await harness.journal(job.id) if isinstance(entry, FinishedEntry)]
        assert len(ends) == 1


def _session_id(harness: Harness, number: int) -> str:
    return f"{harness.pool}-{number}"


def _request(number: int, turn: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"turn {turn} of {number}"}], "max_tokens": 20}


def _expected(number: int, turns: Iterable[int]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages += _request(number, turn)["messages"]
        text = expected_text(Endpoint.CHAT, {"messages": messages, "max_tokens": 20})
        messages.append({"role": "assistant", "content": text})
    return messages
