"""Turns go on when their pool's queue is full: one that was accepted needs no room in it again."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    Connect,
    ForeignClient,
    StartWorker,
    StartWorkerProcess,
    journal_of,
    kinds_of,
    slow_chat,
    until_running,
    until_tokens,
)
from tests.integration.sessions.conftest import conversation, finished

from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas import FailureCode, Job, JobState
from inferfleet.schemas.errors import QueueFullError
from inferfleet.schemas.message import read_job

LIMIT = 3

EXACT: dict[str, Any] = {"queue_max_length": LIMIT, "queue_type": "classic"}
"""The limit of a quorum queue is not exact."""

TWO_SLOTS: dict[str, Any] = {**EXACT, "max_running": 2, "look_ahead": 0, "lease_s": 1}

FOR_LONG = slow_chat("long", tokens=2000, step_s=0.1)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

STEADY: dict[str, Any] = {"simulated": {"tokens": 60, "step_delay_s": 0.05}}


@dataclass(frozen=True)
class Crowd:
    """A worker with two slots runs a turn and a job that does not end; the queue is full of such jobs."""

    fleet: Fleet
    session: Session
    pool: str
    first: Job
    long: list[Job]

    async def send(self, text: str, **options: Any) -> Job:
        return await self.session.send(text, pool=self.pool, **options)

    async def fill(self) -> None:
        for _ in range(LIMIT):
            self.long.append(await self.fleet.submit(FOR_LONG, pool=self.pool))
        with pytest.raises(QueueFullError):
            await self.fleet.submit("one more", pool=self.pool)

    async def end_the_first(self) -> None:
        """From here on a slot is free, for the turn behind it or for one of the long jobs."""
        await self.fleet.cancel(self.first)
        await finished(self.fleet, self.first)

    async def assert_crowded(self) -> None:
        assert {(await self.fleet.get(job)).state.terminal for job in self.long} == {False}


@pytest.fixture
async def crowd(connect: Connect, pool: str) -> AsyncIterator[Crowd]:
    """To be used with a worker of ``TWO_SLOTS``."""
    async with connect(**EXACT) as fleet:
        await fleet.declare_pool(pool)
        session = fleet.session(f"s-{uuid4()}")
        long = [await fleet.submit(FOR_LONG, pool=pool)]
        first = await session.send("first", body={"simulated": FOR_LONG["simulated"]}, pool=pool)
        yield Crowd(fleet, session, pool, first, long)
        for job in long:
            await fleet.cancel(job)


async def test_turns_go_on_beside_a_queue_that_stays_full(crowd: Crowd, start_worker: StartWorker) -> None:
    await start_worker(**TWO_SLOTS)
    await until_running(crowd.fleet, crowd.first)
    turns = [await crowd.send(text) for text in ("second", "third", "fourth")]
    await crowd.fill()
    await crowd.end_the_first()
    await finished(crowd.fleet, *turns)
    await crowd.assert_crowded()
    assert await crowd.session.history() == conversation("second", "third", "fourth")


async def test_a_turn_that_is_carried_fails_is_tried_again_and_stopped_like_any_other(
    crowd: Crowd, start_worker: StartWorker, foreign: ForeignClient
) -> None:
    await start_worker(**TWO_SLOTS)
    await until_running(crowd.fleet, crowd.first)
    failing = {"simulated": {"tokens": 20, "fail": "engine_error", "after_tokens": 5}}
    flaky = {"simulated": {**failing["simulated"], "fail_times": 1}}
    doomed = await crowd.send("doomed", body=failing, max_attempts=1, traceparent=TRACEPARENT)
    stopped = await crowd.send("stopped", body={"simulated": FOR_LONG["simulated"]})
    tried_again = await crowd.send("tried again", body=flaky)
    await crowd.fill()
    await crowd.end_the_first()
    # Its dead letter is its own, and not the message that carried it.
    letter = await foreign.dead_letter()
    assert letter.header.properties.message_id == doomed.id
    assert read_job(letter.body).body["messages"][-1]["content"] == "doomed"
    assert (letter.header.properties.headers or {})["traceparent"] == TRACEPARENT
    await until_running(crowd.fleet, stopped)
    assert await crowd.fleet.cancel(stopped) is JobState.RUNNING
    results = await finished(crowd.fleet, doomed, stopped)
    assert [result.state for result in results] == [JobState.FAILED, JobState.CANCELLED]
    assert results[0].error is not None
    assert results[0].error.code is FailureCode.TOO_MANY_ATTEMPTS
    # While it waits for its retry, others take its slot.
    for job in crowd.long:
        await crowd.fleet.cancel(job)
    (result,) = await finished(crowd.fleet, tried_again)
    assert (result.state, result.attempts) == (JobState.SUCCEEDED, 2)
    assert await crowd.session.history() == conversation("tried again", simulated={"tokens": 20})


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_a_turn_that_is_carried_goes_on_when_its_worker_ends(
    crowd: Crowd,
    start_worker_process: StartWorkerProcess,
    start_worker: StartWorker,
    store: aioredis.Redis,
    end: signal.Signals,
) -> None:
    ending = await start_worker_process(
        **{name: str(value) for name, value in TWO_SLOTS.items()},
        drain_timeout_s="0",
        engine_args='{"speed": 0}',
    )
    await until_running(crowd.fleet, crowd.first)
    second = await crowd.send("second", body=STEADY, stream=True)
    third = await crowd.send("third")
    await crowd.fill()
    await crowd.end_the_first()
    await until_tokens(crowd.fleet, second, 3)
    ending.signal(end)
    assert await ending.ended() == (-end if end is signal.SIGKILL else 0)
    await start_worker(**TWO_SLOTS | {"max_running": 8})
    results = await finished(crowd.fleet, second, third)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    said = conversation("second", **STEADY)
    assert await crowd.session.history() == conversation("third", after=said)
    # It went on behind what it had said.
    assert "restarted" not in kinds_of(await journal_of(store, second))
