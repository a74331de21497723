"""A lane goes on, and a history stays exact, wherever a worker or a producer dies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    assert_whole,
    eventually,
    journal_of,
    kinds_of,
    text_of,
)
from tests.integration.sessions.conftest import conversation, finished

from inferfleet.producer import Fleet
from inferfleet.producer.publisher import Publisher
from inferfleet.producer.sessions import Session
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import SessionBusyError
from inferfleet.schemas.journal import FinishedEntry, TokensEntry
from inferfleet.schemas.names import job_queue
from inferfleet.wire.redis.session_lanes import SessionLanes

pytestmark = [pytest.mark.matrix, pytest.mark.store]

DYING = """
import os, signal
from importlib import import_module

module, owner, method = {place!r}.split(":")

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(getattr(import_module(module), owner), method, die)
"""

DEATHS = {
    "before the turn is added": "inferfleet.wire.redis.session_histories:SessionHistories:append",
    "between the turn and the commit": "inferfleet.wire.redis.job_endings:JobEndings:finish",
    "between the commit and the lane": "inferfleet.wire.redis.session_lanes:SessionLanes:advance",
    "between the lane and the publish": "inferfleet.worker.lanes:LaneAdvance:_publish",
    "between the publish and its note": "inferfleet.wire.redis.session_lanes:SessionLanes:published",
    "before the ack": "inferfleet.worker.acknowledger:Acknowledger:ack",
}


@asynccontextmanager
async def dying_worker(place: str, environment: dict[str, str], pool: str) -> AsyncIterator[ForkedProcess]:
    """A worker process that kills itself with SIGKILL when it comes to this method."""
    with Path(os.devnull).open("wb") as nowhere:
        process = ForkedProcess(
            [
                *["worker", "--pool", pool, "--engine", "simulated"],
                *["--engine-args", '{"speed": 0}', "--http-port", "0"],
            ],
            env=environment | {"INFERFLEET_LEASE_S": "1"},
            stdout=nowhere,
            stderr=nowhere,
            preamble=DYING.format(place=place),
        )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("message_is", ["kept", "lost"])
async def test_a_worker_that_dies_at_any_point_of_a_turn_leaves_no_lane_stuck_and_no_turn_twice(
    fleet: Fleet,
    environment: dict[str, str],
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: Any,
    pool: str,
    message_is: str,
) -> None:
    # Given a pool, a session and a worker for each place to die at
    texts = [f"turn {number}" for number in range(4)]
    talks: list[tuple[str, Session, list[Job]]] = []
    for number in range(len(DEATHS)):
        own_pool = f"{pool}-{number}"
        await fleet.declare_pool(own_pool)
        session = fleet.session(f"s-{uuid4()}")
        talks.append((own_pool, session, [await session.send(text, pool=own_pool) for text in texts]))

    async def die(place: str, own_pool: str) -> None:
        async with dying_worker(place, environment, own_pool) as process:
            assert await asyncio.wait_for(process.wait(), PATIENCE_S) == -9

    await asyncio.gather(*(die(place, talk[0]) for place, talk in zip(DEATHS.values(), talks, strict=True)))

    # When RabbitMQ loses what comes back from them, or not
    if message_is == "lost":
        for own_pool, _, _ in talks:
            while not await foreign.waiting(job_queue(own_pool)):
                await asyncio.sleep(0.01)
            await foreign.channel.queue_purge(job_queue(own_pool))

    # And another worker comes for each
    for own_pool, _, _ in talks:
        await start_worker(pool=own_pool, lease_s=1, sweep_interval_s=0.4)

    # Then each conversation goes on to its end, exactly
    await finished(fleet, *(job for _, _, jobs in talks for job in jobs))
    for place, (_, session, jobs) in zip(DEATHS, talks, strict=True):
        assert await session.history() == conversation(*texts), f"died {place}"
        for job in jobs:
            ends = [entry for entry in await journal_of(store, job) if isinstance(entry, FinishedEntry)]
            assert len(ends) == 1, f"died {place}"


@pytest.mark.parametrize("on_busy", ["interrupt", "rollback"])
async def test_a_turn_that_is_in_the_history_has_succeeded_also_if_its_worker_died_and_it_was_to_stop(
    fleet: Fleet,
    session: Session,
    environment: dict[str, str],
    start_worker: StartWorker,
    pool: str,
    on_busy: str,
) -> None:
    first = await session.send("first", pool=pool)
    async with dying_worker(DEATHS["between the turn and the commit"], environment, pool) as process:
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == -9
    second = await session.send("second", on_busy=on_busy, pool=pool)
    await start_worker(lease_s=1)
    results = await finished(fleet, first, second)
    assert [result.state for result in results] == [JobState.SUCCEEDED] * 2
    assert await session.history() == conversation("first", "second")


@pytest.mark.parametrize(
    "more", [{}, {"tools": [{"type": "function", "function": {"name": "clock"}}], "tool_choice": "required"}]
)
async def test_a_turn_whose_worker_died_before_the_commit_is_the_same_to_all_who_look(
    fleet: Fleet,
    session: Session,
    environment: dict[str, str],
    start_worker: StartWorker,
    store: Any,
    pool: str,
    more: dict[str, Any],
) -> None:
    """Also one that could not be resumed: it has its answer already."""
    async with dying_worker(DEATHS["between the turn and the commit"], environment, pool) as process:
        body = {"simulated": {"tokens": 20, "step_delay_s": 0.1}, **more}
        job = await session.send("first", body=body, stream=True, pool=pool)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == -9
    await start_worker(lease_s=1)
    (result,) = await finished(fleet, job)
    assert result.state is JobState.SUCCEEDED
    entries = await journal_of(store, job)
    assert "restarted" not in kinds_of(entries)
    assert_whole(entries)
    assert text_of(entries) == result.text
    tokens = [chunk for entry in entries if isinstance(entry, TokensEntry) for chunk in entry.chunks]
    counts = (sum(len(chunk.token_ids) for chunk in tokens), (await fleet.get(job)).tokens)
    assert counts == (result.usage.completion_tokens, result.usage.completion_tokens)


async def test_an_interrupted_turn_whose_worker_died_before_the_commit_is_still_cancelled(
    fleet: Fleet, session: Session, environment: dict[str, str], start_worker: StartWorker, pool: str
) -> None:
    body = {"simulated": {"tokens": 200, "step_delay_s": 0.05}}
    async with dying_worker(DEATHS["between the turn and the commit"], environment, pool) as process:
        first = await session.send("first", body=body, stream=True, pool=pool)
        await eventually(lambda: _has_tokens(fleet, first))
        second = await session.send("second", on_busy="interrupt", pool=pool)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == -9
    await start_worker(lease_s=1)
    interrupted, _ = await finished(fleet, first, second)
    assert interrupted.state is JobState.CANCELLED
    said = [{"role": "user", "content": "first"}, {"role": "assistant", "content": interrupted.text}]
    assert await session.history() == conversation("second", after=said)


async def _has_tokens(fleet: Fleet, job: Job) -> bool:
    return (await fleet.get(job)).tokens > 0


# Producers


class DeadProducerError(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def producer_dies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From now on, producers die where they would publish a job."""

    async def die(*_: Any, **__: Any) -> None:
        raise DeadProducerError

    monkeypatch.setattr(Publisher, "publish", die)
    return monkeypatch


async def test_a_turn_behind_one_whose_producer_died_is_not_stuck(
    connect: Connect, fleet: Fleet, session: Session, start_worker: StartWorker, pool: str, producer_dies: Any
) -> None:
    # Given a turn that owns its session, and was never published
    with pytest.raises(DeadProducerError):
        await session.send("abandoned", pool=pool)
    producer_dies.undo()

    # When another producer submits the next
    async with connect(turn_publish_grace_s=0.2) as other:
        second = await other.session(session.id).send("second", pool=pool)
        await start_worker()

        # Then that does both, with no third to help
        await finished(other, second)
    assert await session.history() == conversation("abandoned", "second")


async def test_a_producer_that_only_takes_a_free_session_is_not_refused_for_ever(
    connect: Connect, session: Session, start_worker: StartWorker, pool: str, producer_dies: Any
) -> None:
    with pytest.raises(DeadProducerError):
        await session.send("abandoned", pool=pool)
    producer_dies.undo()
    await start_worker()
    async with connect(turn_publish_grace_s=0.1) as other:
        talk = other.session(session.id)

        async def accepted() -> bool:
            try:
                await finished(other, await talk.send("second", on_busy="reject", pool=pool))
            except SessionBusyError:
                return False
            return True

        await eventually(accepted)
    assert await session.history() == conversation("abandoned", "second")


@pytest.mark.parametrize("on_busy", ["interrupt", "rollback"])
async def test_a_turn_that_was_never_published_is_stopped_like_any_other(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str, producer_dies: Any, on_busy: str
) -> None:
    with pytest.raises(DeadProducerError):
        await session.send("abandoned", pool=pool)
    producer_dies.undo()
    second = await session.send("second", on_busy=on_busy, pool=pool)
    await start_worker()
    await finished(fleet, second)
    assert await session.history() == conversation("second")


async def test_a_turn_whose_pool_nobody_ever_had_does_not_hold_up_those_behind_it(
    connect: Connect, fleet: Fleet, session: Session, start_worker: StartWorker, pool: str, producer_dies: Any
) -> None:
    with pytest.raises(DeadProducerError):
        await session.send("abandoned", pool="nowhere")
    producer_dies.undo()
    async with connect(turn_publish_grace_s=0.1) as other:
        second = await other.session(session.id).send("second", pool=pool)
        await start_worker()
        await finished(other, second)
    assert await session.history() == conversation("second")


async def test_a_producer_that_died_after_its_publish_leaves_nothing_to_repair(
    connect: Connect,
    session: Session,
    start_worker: StartWorker,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def die(*_: Any, **__: Any) -> None:
        raise DeadProducerError

    with monkeypatch.context() as patch:
        patch.setattr(SessionLanes, "published", die)
        with pytest.raises(DeadProducerError):
            await session.send("first", pool=pool)
    await start_worker()
    async with connect() as other:
        second = await other.session(session.id).send("second", pool=pool)
        await finished(other, second)
    assert await session.history() == conversation("first", "second")
