"""Sessions that Redis remembers without its latest, or without what belongs together: each goes on."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    StartWorker,
    chat,
    eventually,
    until_tokens,
)
from tests.integration.sessions.conftest import conversation, finished

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas import FailureCode, Job, JobState, Result
from inferfleet.schemas.errors import PublishUnconfirmedError, SessionBusyError
from inferfleet.schemas.job import OnBusy
from inferfleet.schemas.names import (
    job_key,
    journal_key,
    lane_key,
    left_key,
    payloads_key,
    result_key,
    session_key,
    state_key,
    turns_key,
)
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.confirms import UnroutableError
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.followers import Followers
from inferfleet.wire.redis.job_reading import Standing
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_histories import SessionHistories
from inferfleet.wire.redis.session_lanes import Payload, SessionLanes
from inferfleet.worker.lanes import LaneAdvance

WAITS = {OnBusy.ENQUEUE, OnBusy.REJECT}

STEADY = {"simulated": {"tokens": 40, "step_delay_s": 0.02}}


def keys_of(session: Session) -> list[str]:
    return [key(session.id) for key in (session_key, lane_key, payloads_key, turns_key, state_key, left_key)]


def keys_of_job(job: Job) -> list[str]:
    return [key(job.id) for key in (job_key, journal_key, result_key)]


class Snapshot:
    """Some keys as they were, as a Redis has them that comes back without its latest."""

    def __init__(self, store: aioredis.Redis, values: dict[str, bytes | None]) -> None:
        self._store = store
        self._values = values

    @classmethod
    async def of(cls, store: aioredis.Redis, keys: list[str]) -> Snapshot:
        return cls(store, {key: await store.dump(key) for key in keys})

    async def come_back(self) -> None:
        async with self._store.pipeline() as together:
            for key, value in self._values.items():
                together.delete(key)
                if value is not None:
                    together.restore(key, 600_000, value)
            await together.execute()


async def until_idle(session: Session) -> None:
    async def idle() -> bool:
        record = await session.get()
        return record is None or record.owner is None

    await eventually(idle)


async def forgotten_end(
    fleet: Fleet, store: aioredis.Redis, session: Session, pool: str, *, with_record: bool
) -> Job:
    """Run a turn to its end, and have Redis come back with the session, or its record too, of before."""
    job = await session.send("first", body=STEADY, stream=True, pool=pool)
    await until_tokens(fleet, job, 3)
    keys = [*keys_of(session), *(keys_of_job(job) if with_record else [])]
    snapshot = await Snapshot.of(store, keys)
    await finished(fleet, job)
    await until_idle(session)
    await snapshot.come_back()
    return job


async def test_a_turn_that_is_in_the_history_cannot_be_cancelled_when_its_worker_died_before_it_said_so(
    fleet: Fleet,
    session: Session,
    start_worker: StartWorker,
    records: JobRecords,
    store: aioredis.Redis,
    pool: str,
) -> None:
    await start_worker(lease_s=1)
    job = await session.send("first", body=STEADY, stream=True, pool=pool)
    await until_tokens(fleet, job, 3)
    snapshot = await Snapshot.of(store, keys_of_job(job))
    owned: dict[Any, Any] = await store.hgetall(session_key(session.id))
    payloads: dict[Any, Any] = await store.hgetall(payloads_key(session.id))
    await finished(fleet, job)
    await until_idle(session)
    # Redis has the turn, and neither the end of its job nor that its lane has moved on.
    answer = await store.hgetall(session_key(session.id))
    said = {name: answer[name] for name in (b"turns", b"version", b"bytes", b"last_turn")}
    await store.hset(session_key(session.id), mapping=owned | said | {b"answer": b""})
    await store.hset(payloads_key(session.id), mapping=payloads)
    await store.delete(left_key(session.id))
    await snapshot.come_back()

    async def is_stalled() -> bool:
        return await records.standing(job.id) is Standing.STALLED

    await eventually(is_stalled)
    assert await fleet.cancel(job) is JobState.RUNNING


@pytest.mark.parametrize("on_busy", OnBusy)
async def test_a_session_goes_on_whose_turn_has_lost_its_end_and_its_message(
    fleet: Fleet,
    session: Session,
    start_worker: StartWorker,
    store: aioredis.Redis,
    records: JobRecords,
    pool: str,
    on_busy: OnBusy,
) -> None:
    await start_worker(lease_s=1)
    await finished(fleet, await session.send("zero", pool=pool))
    first = await forgotten_end(fleet, store, session, pool, with_record=True)

    async def stalled() -> bool:
        return await records.standing(first.id) is Standing.STALLED

    await eventually(stalled)
    if on_busy is OnBusy.REJECT:
        # It is unfinished, but no longer for ever.
        with pytest.raises(SessionBusyError):
            await session.send("second", on_busy=on_busy, pool=pool)
        await until_idle(session)
    second = await session.send("second", on_busy=on_busy, pool=pool)
    results = await finished(fleet, first, second)
    assert results[1].state is JobState.SUCCEEDED
    assert results[0].state is (JobState.SUCCEEDED if on_busy in WAITS else JobState.CANCELLED)
    texts = [message["content"] for message in await session.history()]
    assert texts[::2] == ["zero", *([] if on_busy is OnBusy.ROLLBACK else ["first"]), "second"]


@pytest.mark.parametrize("on_busy", OnBusy)
async def test_a_session_goes_on_that_has_forgotten_that_its_turn_is_over(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str, on_busy: OnBusy
) -> None:
    await start_worker(lease_s=1)
    async with connect(turn_publish_grace_s=0.1) as fleet:
        await fleet.declare_pool(pool)
        session = fleet.session(f"s-{uuid4()}")
        await forgotten_end(fleet, store, session, pool, with_record=False)
        await finished(fleet, await session.send("second", on_busy=on_busy, pool=pool))
        assert await session.history() == conversation("second")


async def test_a_turn_whose_session_is_gone_runs_when_it_is_submitted_again_and_can_be_cancelled(
    fleet: Fleet, session: Session, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    first = await session.send("first", pool=pool)
    waiting = [await session.send(text, pool=pool, idempotency_key=f"{session.id}{text}") for text in "ab"]
    await store.delete(*keys_of(session))
    again = await session.send("a", pool=pool, idempotency_key=f"{session.id}a")
    assert again.id == waiting[0].id
    assert await fleet.cancel(waiting[1]) is JobState.CANCELLED
    await start_worker()
    results = await finished(fleet, first, *waiting)
    assert [result.state for result in results] == [*[JobState.SUCCEEDED] * 2, JobState.CANCELLED]


async def test_a_turn_that_redis_forgets_while_it_is_submitted_is_not_said_to_be_accepted(
    connect: Connect, session: Session, pipeline: CommandPipeline, store: aioredis.Redis, pool: str
) -> None:
    async with connect(turn_publish_grace_s=600) as fleet:
        front = Job(pool=pool, session_id=session.id, body=chat())
        await store.hset(job_key(front.id), mapping={"state": "queued", "attempt": 0})
        await store.expire(job_key(front.id), 600)
        settings = WorkerSettings(pool=pool)
        await SessionLanes(pipeline=pipeline, settings=settings).enter(Payload(front, ""))
        turn = Job(pool=pool, session_id=session.id, body=chat())
        submitting = asyncio.create_task(fleet.submit(turn))

        async def waits() -> bool:
            record = await session.get()
            return record is not None and record.waiting == (turn.id,)

        await eventually(waits)
        await store.delete(*keys_of(session), *keys_of_job(turn))
        with pytest.raises(PublishUnconfirmedError):
            await asyncio.wait_for(submitting, PATIENCE_S)


async def test_a_running_turn_keeps_its_session_alive(
    fleet: Fleet, session: Session, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    life_s, rest_s = 20, 15
    await start_worker(queued_ttl_s=life_s)
    await finished(fleet, await session.send("first", pool=pool))
    long = {"simulated": {"tokens": 2000, "step_delay_s": 0.05}}
    job = await session.send("second", body=long, stream=True, pool=pool)
    await until_tokens(fleet, job, 1)
    keys = [session_key(session.id), turns_key(session.id)]

    async def renewed() -> bool:
        return min([await store.ttl(key) for key in keys]) > rest_s

    for key in keys:
        await store.expire(key, rest_s)
    await eventually(renewed)
    await fleet.cancel(job)


async def test_a_turn_that_loses_its_session_each_time_ends(
    fleet: Fleet,
    session: Session,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = SessionHistories.append

    async def lose_it(self: SessionHistories, *arguments: Any, **options: Any) -> Any:
        await store.delete(*keys_of(session))
        return await append(self, *arguments, **options)

    monkeypatch.setattr(SessionHistories, "append", lose_it)
    await start_worker()
    (result,) = await finished(fleet, await session.send("first", max_attempts=2, pool=pool))
    assert result.error is not None
    assert result.error.code is FailureCode.TOO_MANY_ATTEMPTS


async def test_a_turn_that_runs_is_not_passed_over_because_its_pool_is_gone(
    fleet: Fleet,
    session: Session,
    services: Services,
    pipeline: CommandPipeline,
    records: JobRecords,
    store: aioredis.Redis,
    pool: str,
) -> None:
    settings = WorkerSettings(pool=pool, worker_id="w")
    session_lanes = SessionLanes(pipeline=pipeline, settings=settings)
    first, second = (Job(pool=f"{pool}-gone", session_id=session.id, body=chat()) for _ in range(2))
    for job in (first, second):
        await records.create(job, reply_to="", call="call")
        await session_lanes.enter(Payload(job, ""))
    await records.cancel(first.id, Result(job_id=first.id, state=JobState.CANCELLED))
    await records.start(
        second, token="t", worker_id="other", lease_s=60, resumable=True, alone=True, reply_to=""
    )
    channel = ConfirmChannel(
        services.amqp_url, connect_timeout_s=PATIENCE_S, confirm_timeout_s=PATIENCE_S, name="lanes"
    )

    async def publish(job: Job, body: bytes, reply_to: str) -> None:
        raise AssertionError(f"nothing follows, but job {job.id} is published")

    lanes = LaneAdvance(
        settings=settings,
        records=records,
        session_lanes=session_lanes,
        confirm_channel=channel,
        followers=Followers(pipeline, records, queued_ttl_s=60, publish=publish),
    )
    with pytest.raises(UnroutableError):
        await lanes.let_next_run(first, witness=first)
    await channel.aclose()
    record = await session.get()
    assert record is not None
    assert record.owner == second.id
