"""One job that several submit, and what a refusal of one of them may take back: nothing of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    answer_to,
    chat,
    eventually,
    slow_chat,
    until_running,
)

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.producer.job_listing import JobFilter
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import (
    InferfleetError,
    JobNotFoundError,
    PublishUnconfirmedError,
    QueueFullError,
    ServiceUnreachableError,
    SessionBusyError,
    UnknownPoolError,
)
from inferfleet.schemas.job import DEFAULT_TENANT
from inferfleet.schemas.names import idempotency_key, job_key, job_queue, open_key, session_key
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis import idempotency, job_scripts
from inferfleet.wire.redis.followers import Followers
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import Closed, JobRecords, Recorded
from inferfleet.wire.redis.session_lanes import EnterStatus, Payload, SessionLanes, Withdrawn

pytestmark = pytest.mark.store

DEAD_CALL = "a-call-of-a-dead-producer"


@pytest.fixture
async def silent(services: Services) -> AsyncIterator[Proxy]:
    """A way to RabbitMQ on which nothing arrives."""
    async with Proxy(services.amqp_url) as link:
        link.hold(Direction.TO_SERVICE)
        yield link
        await link.until_held(Direction.TO_SERVICE)


@pytest.fixture
def lanes(pipeline: CommandPipeline) -> SessionLanes:
    return SessionLanes(pipeline=pipeline, settings=ServiceSettings())


async def open_the_way(fleet: Fleet, pool: str) -> None:
    """Have all that a client opens before its first message."""
    with pytest.raises(UnknownPoolError):
        await fleet.submit("hello", pool=f"{pool}-nowhere")


async def outcome(submitting: asyncio.Task[Job]) -> Job | InferfleetError:
    try:
        return await submitting
    except InferfleetError as error:
        return error


async def recorded(store: aioredis.Redis, pool: str) -> list[str]:
    """The ids of the jobs of a pool that have a record."""
    return [
        key.decode().partition("{")[2].removesuffix("}")
        async for key in store.scan_iter("inferfleet:job:{*}", count=10_000)
        if await store.hget(key, "pool") == pool.encode()
    ]


# Two callers, one key


@pytest.mark.parametrize("session", [None, "shared"])
async def test_a_refusal_takes_nothing_back_from_another_caller_with_the_same_key(
    connect: Connect,
    fleet: Fleet,
    store: aioredis.Redis,
    start_worker: StartWorker,
    silent: Proxy,
    pool: str,
    session: str | None,
) -> None:
    # Given a caller whose broker never answers, and another one that submits the same
    options: dict[str, Any] = {"pool": pool, "idempotency_key": pool}
    if session is not None:
        options["session_id"] = f"{session}-{pool}"
    async with connect(amqp_url=silent.url, connect_timeout_s=3.0) as unlucky:
        refused = asyncio.create_task(unlucky.submit("hello", **options))
        await eventually(lambda: _is_claimed(store, pool))
        job = await fleet.submit("hello", **options)

        # When the first one gives up
        told = await outcome(refused)

    # Then the second one's job is there, can be waited for, and is what the key stands for
    assert isinstance(told, Job)
    assert told.id == job.id
    assert (await fleet.get(job)).state is JobState.QUEUED
    assert (await fleet.submit("hello", **options)).id == job.id
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    assert await recorded(store, pool) == [job.id]


async def test_a_refusal_beside_a_caller_that_is_not_done_is_told_as_a_doubt(
    connect: Connect, fleet: Fleet, records: JobRecords, store: aioredis.Redis, pool: str
) -> None:
    async with connect(turn_publish_grace_s=0.1) as hasty:
        nowhere = f"{pool}-x"
        job = Job(pool=nowhere, body=chat(), idempotency_key=pool)
        await records.create(job, reply_to="", call=DEAD_CALL)
        with pytest.raises(PublishUnconfirmedError, match="another call"):
            await hasty.submit(job)
    assert (await fleet.get(job)).state is JobState.QUEUED
    # The other one is the last then, and takes it back.
    assert await records.close(job.id, call=DEAD_CALL) is Closed.CLOSED


async def test_of_many_callers_with_one_key_none_leaves_anything_when_all_are_refused(
    fleet: Fleet, connect: Connect, store: aioredis.Redis, pool: str
) -> None:
    nowhere = f"{pool}-x"
    async with connect() as other:
        for _ in range(5):
            outcomes = await asyncio.gather(
                *(
                    client.submit("hello", pool=nowhere, idempotency_key=pool)
                    for client in (fleet, other, fleet, other)
                ),
                return_exceptions=True,
            )
            assert {type(each) for each in outcomes} == {UnknownPoolError}
    assert await recorded(store, nowhere) == []
    assert await fleet.submit("something else", pool=pool, idempotency_key=pool)


async def test_callers_that_share_keys_are_told_the_truth_whatever_the_order(
    connect: Connect, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    """A pool with hardly any room: whoever is told of a job has it, and the key stands for one job."""
    async with connect(queue_max_length=3) as one, connect(queue_max_length=3) as other:
        small = f"{pool}-small"
        await one.declare_pool(small)
        keys = [f"{pool}-{number}" for number in range(20)]
        told = await asyncio.gather(
            *(
                outcome(asyncio.create_task(client.submit("hello", pool=small, idempotency_key=key)))
                for key in keys
                for client in (one, other, one)
            )
        )
        accepted: dict[str, set[str]] = {}
        for key, each in zip((key for key in keys for _ in range(3)), told, strict=True):
            if isinstance(each, Job):
                accepted.setdefault(key, set()).add(each.id)
            else:
                assert isinstance(each, QueueFullError | PublishUnconfirmedError)
        assert accepted
        await start_worker(pool=small, queue_max_length=3)
        for key, ids in accepted.items():
            (job_id,) = ids
            assert (await one.wait(job_id, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
            assert (await other.submit("hello", pool=small, idempotency_key=key)).id == job_id


async def test_a_job_that_a_dead_producer_was_taking_back_does_not_keep_its_key(
    fleet: Fleet, records: JobRecords, pipeline: CommandPipeline, store: aioredis.Redis, pool: str
) -> None:
    lost = Job(pool=pool, body=chat(), idempotency_key=pool)
    await idempotency.claim(pipeline, lost, call=DEAD_CALL, ttl_s=600)
    await records.create(lost, reply_to="", call=DEAD_CALL)
    assert await records.close(lost.id, call=DEAD_CALL) is Closed.CLOSED
    job = await fleet.submit(chat(), pool=pool, idempotency_key=pool)
    assert job.id != lost.id
    assert await recorded(store, pool) == [job.id]


@pytest.mark.parametrize("times", [1, 2], ids=["at_once", "after_the_first_answer_was_lost"])
async def test_a_job_that_was_taken_back_before_the_second_caller_had_its_record_is_not_revived(
    fleet: Fleet,
    records: JobRecords,
    pipeline: CommandPipeline,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    # Given a caller that finds a job under its key, which is refused and gone by the time of its record
    refused = Job(pool=pool, body=chat(), idempotency_key=pool)
    claimed = await idempotency.claim(pipeline, refused, call=DEAD_CALL, ttl_s=600)
    await records.create(refused, reply_to="", call=DEAD_CALL)
    claim = idempotency.claim

    async def claim_and_be_late(*arguments: Any, **more: Any) -> idempotency.Claim:
        found = await claim(*arguments, **more)
        if await records.close(refused.id, call=DEAD_CALL) is Closed.CLOSED:
            await idempotency.forget(pipeline, claimed)
            assert await records.discard(refused.id)
        return found

    create = JobRecords.create

    async def create_again(*arguments: Any, **more: Any) -> Recorded:
        return [await create(*arguments, **more) for _ in range(times)][-1]

    monkeypatch.setattr(idempotency, "claim", claim_and_be_late)
    monkeypatch.setattr(JobRecords, "create", create_again)

    # When it is accepted, then with a key that stands for its job
    job = await fleet.submit(chat(), pool=pool, idempotency_key=pool)
    assert (await fleet.submit(chat(), pool=pool, idempotency_key=pool)).id == job.id
    assert await recorded(store, pool) == [job.id]


async def test_a_job_that_is_submitted_again_after_a_refusal_stays_in_the_index(
    connect: Connect, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """Else no sweep would find it, should its message be lost."""
    async with connect(queue_max_length=1) as fleet:
        small = f"{pool}-small"
        await fleet.declare_pool(small)
        await fleet.submit("fills the queue", pool=small)
        job = Job(pool=small, body=chat(), idempotency_key=pool)
        with pytest.raises(QueueFullError):
            await fleet.submit(job)
        assert await store.zscore(open_key(small, job.priority), job.id) is None
        await foreign.channel.queue_purge(job_queue(small))
        await fleet.submit(job)

    # The client has done by now all that it does later.
    assert await store.zscore(open_key(small, job.priority), job.id) is not None
    await foreign.channel.queue_delete(job_queue(small))


async def test_a_slow_caller_that_was_refused_takes_nothing_from_a_later_submission_of_the_same_job(
    connect: Connect, records: JobRecords, pipeline: CommandPipeline, store: aioredis.Redis, pool: str
) -> None:
    async with connect() as fleet:
        await fleet.declare_pool(pool)
        first = await fleet.submit("one", pool=pool)
        job = Job(pool=pool, body=chat("{{jobs.0.text}}"), after=(first.id,))
        # Given a caller that is about to take its job back
        followers = Followers(pipeline, records, queued_ttl_s=600, publish=_never)
        await records.create(job, reply_to="", call=DEAD_CALL)
        await followers.follow(job)
        assert await records.close(job.id, call=DEAD_CALL) is Closed.CLOSED
        known: Any = await store.hget(job_key(first.id), "followed_by")
        entered_ms = await records.open_jobs.entered_ms(job)
        assert entered_ms is not None

        # When another one completes that for it, and submits the job, before its commands arrive
        await fleet.submit(job)
        late = job_scripts.unfollow(job_key(first.id), follower=job.id, tenant=job.tenant, known_call=known)
        assert await pipeline.execute(*late) == b"followed"
        await followers.unfollow(job)
        await records.open_jobs.withdraw(job, entered_ms)

        # Then the job still follows the other one, and is in the index
        assert job.id.encode() in (await store.hget(job_key(first.id), "followers") or b"")
        assert await store.zscore(open_key(pool, job.priority), job.id) is not None


async def _never(job: Job, body: bytes, reply_to: str) -> None:
    raise AssertionError(f"job {job.id} was published")


async def test_a_key_that_was_claimed_anew_is_not_freed_with_the_old_claim(
    fleet: Fleet, pipeline: CommandPipeline, pool: str
) -> None:
    job = Job(pool=pool, body=chat(), idempotency_key=pool)
    old = await idempotency.claim(pipeline, job, call=DEAD_CALL, ttl_s=600)
    await idempotency.forget(pipeline, old)
    new = await fleet.submit(job)
    await idempotency.forget(pipeline, old)
    await idempotency.accept(pipeline, old, ttl_s=600)
    assert (await fleet.submit(job.model_copy(update={"id": Job(body={}).id}))).id == new.id


# One caller, twice


async def test_a_retry_that_is_refused_says_nothing_about_the_call_before(
    services: Services, connect: Connect, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    # Given a job that is queued, though its producer never heard of it
    async with Proxy(services.amqp_url) as link:
        options: dict[str, Any] = {"queue_max_length": 1, "turn_publish_grace_s": 0.2}
        async with connect(**options) as fleet:
            await fleet.declare_pool(pool)
            async with connect(**options, amqp_url=link.url, publish_timeout_s=2.0) as cut_off:
                await open_the_way(cut_off, pool)
                link.hold(Direction.TO_CLIENT)
                with pytest.raises(PublishUnconfirmedError):
                    await cut_off.submit("only once", pool=pool, idempotency_key=pool)
                link.heal()
            assert await foreign.waiting() == 1

            # When it is submitted again, and its pool is full, then that is no "not accepted"
            with pytest.raises(PublishUnconfirmedError, match="is full"):
                await fleet.submit("only once", pool=pool, idempotency_key=pool)

            # And the key still stands for it
            await start_worker(queue_max_length=1)
            await eventually(lambda: _is_empty(foreign))
            job = await fleet.submit("only once", pool=pool, idempotency_key=pool)
            assert (await fleet.wait(job, timeout_s=PATIENCE_S)).attempts == 1


@pytest.mark.usefixtures("one_redis")
async def test_a_job_that_the_broker_has_is_accepted_though_redis_goes_away_then(
    services: Services, connect: Connect, fleet: Fleet, foreign: ForeignClient, pool: str
) -> None:
    async with (
        Proxy(services.amqp_url) as broker,
        Proxy(services.redis_url) as redis,
        connect(amqp_url=broker.url, redis_url=redis.url) as cut_off,
    ):
        await open_the_way(cut_off, pool)
        broker.hold(Direction.TO_CLIENT)
        submitting = asyncio.create_task(cut_off.submit("hello", pool=pool, idempotency_key=pool))
        await eventually(lambda: _is_waiting(foreign))
        await broker.until_held(Direction.TO_CLIENT)
        redis.hold(Direction.TO_SERVICE)
        assert redis.reset()
        broker.heal()
        await redis.until_held(Direction.TO_SERVICE)
        job = await asyncio.wait_for(submitting, PATIENCE_S)
        redis.heal()
    assert (await fleet.submit("hello", pool=pool, idempotency_key=pool)).id == job.id


# Turns, which others publish too


async def test_a_refused_turn_that_a_worker_has_published_meanwhile_is_accepted(
    connect: Connect, fleet: Fleet, start_worker: StartWorker, silent: Proxy, pool: str
) -> None:
    # Given a turn that runs, and one behind it whose producer cannot reach RabbitMQ
    await start_worker()
    session = fleet.session(f"s-{pool}")
    first = await session.send("one", body=_lasting(0.6), pool=pool)
    await until_running(fleet, first)
    options: dict[str, Any] = {"pool": pool, "idempotency_key": pool}
    async with connect(amqp_url=silent.url, connect_timeout_s=3.0) as unlucky:
        charge = asyncio.create_task(unlucky.session(session.id).send("charge my card", **options))

        # When the worker publishes it, before its producer has given up
        told = await outcome(charge)

    # Then it was accepted, and submitting it again does not run it again
    assert isinstance(told, Job)
    again = await session.send("charge my card", **options)
    assert again.id == told.id
    await fleet.wait(again, timeout_s=PATIENCE_S)
    assert [turn.job_id for turn in await session.turns()] == [first.id, again.id]


async def test_a_turn_that_the_next_ones_producer_has_published_stays_in_front(
    connect: Connect, fleet: Fleet, start_worker: StartWorker, silent: Proxy, pool: str, store: aioredis.Redis
) -> None:
    # Given a turn in front whose producer cannot reach RabbitMQ
    session_id = f"s-{pool}"
    async with (
        connect(amqp_url=silent.url, connect_timeout_s=3.0) as unlucky,
        connect(turn_publish_grace_s=0.2) as hasty,
    ):
        first = asyncio.create_task(unlucky.session(session_id).send("one", pool=pool))
        await eventually(lambda: _has_owner(store, session_id))

        # When the next one's producer has published it
        second = await hasty.session(session_id).send("two", pool=pool)
        told = await outcome(first)

    # Then it is accepted, and both run in their order
    assert isinstance(told, Job)
    await start_worker()
    for job in (told, second):
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    turns = await fleet.session(session_id).turns()
    assert [turn.job_id for turn in turns] == [told.id, second.id]


@pytest.mark.parametrize("on_busy", ["enqueue", "reject", "interrupt", "rollback"])
async def test_a_refused_turn_that_nobody_has_seen_leaves_nothing(
    connect: Connect, fleet: Fleet, silent: Proxy, store: aioredis.Redis, pool: str, on_busy: str
) -> None:
    async with connect(amqp_url=silent.url, connect_timeout_s=0.5) as unlucky:
        session = unlucky.session(f"s-{pool}")
        with pytest.raises(ServiceUnreachableError):
            await session.send("one", pool=pool, on_busy=on_busy, idempotency_key=pool)
    assert await recorded(store, pool) == []
    assert not await store.exists(f"inferfleet:session:{{{session.id}}}:payloads")
    record = await session_record(fleet, session.id)
    assert (record.owner, record.waiting) == (None, ())
    assert await fleet.session(session.id).send("another", pool=pool, idempotency_key=pool)


async def test_a_busy_session_refuses_a_turn_without_a_trace(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    session = fleet.session(f"s-{pool}")
    first = await session.send("one", pool=pool)
    with pytest.raises(SessionBusyError):
        await session.send("two", pool=pool, on_busy="reject", idempotency_key=pool)
    assert await recorded(store, pool) == [first.id]
    assert (await session.send("three", pool=pool, idempotency_key=pool)).id != first.id


async def test_a_turn_that_was_offered_to_somebody_else_is_not_taken_back(
    lanes: SessionLanes, pipeline: CommandPipeline, store: aioredis.Redis, pool: str
) -> None:
    """A worker that ends a turn, or the producer of a later turn, may have published it by now."""
    hasty = SessionLanes(pipeline=pipeline, settings=ServiceSettings(turn_publish_grace_s=0.001))

    async def submitted(job: Job) -> Job:
        await store.hset(job_key(job.id), mapping={"state": "queued", "attempt": 0})
        await store.hdel(job_key(job.id), "closed")
        return job

    async def refused(job: Job) -> Job:
        await store.hset(job_key(job.id), "closed", "call")
        return job

    one, two, three = [await submitted(Job(pool=pool, session_id=f"s-{pool}", body=chat())) for _ in range(3)]
    assert (await lanes.enter(Payload(one, ""))).status is EnterStatus.RUN
    assert (await lanes.enter(Payload(two, ""))).status is EnterStatus.WAIT
    # Nobody but its producer knows of it, so it can be taken back; the next one is its producer's to publish.
    for _ in range(2):
        withdrawn, following = await lanes.withdraw(await refused(one))
        assert (withdrawn, following and following.job) == (Withdrawn.OVER, two)
    assert (await lanes.withdraw(await refused(two)))[0] is Withdrawn.OFFERED
    await lanes.published(two)
    assert (await lanes.withdraw(two))[0] is Withdrawn.PUBLISHED
    await store.hset(job_key(two.id), "state", "cancelled")
    await lanes.advance(two)
    # One in front whose producer seems dead is given to whoever comes next, or waits behind it.
    assert (await lanes.enter(Payload(await submitted(one), ""))).status is EnterStatus.RUN
    # It is submitted anew, so whoever was to take it back before leaves it.
    assert (await lanes.withdraw(one))[0] is Withdrawn.OFFERED

    async def offered() -> bool:
        return (await hasty.enter(Payload(three, ""))).again is not None

    await eventually(offered)
    assert (await lanes.withdraw(await refused(one)))[0] is Withdrawn.OFFERED
    await store.hset(job_key(one.id), "state", "cancelled")
    await lanes.advance(one)
    assert (await lanes.front(three, take=three.id)).owner == three.id
    assert (await lanes.withdraw(await refused(three)))[0] is Withdrawn.OFFERED


async def test_a_turn_that_a_dead_producer_was_taking_back_does_not_run(
    fleet: Fleet,
    records: JobRecords,
    lanes: SessionLanes,
    pipeline: CommandPipeline,
    start_worker: StartWorker,
    pool: str,
) -> None:
    # Given a turn that was refused, in its session's front, and a producer that died as it took it back
    options: dict[str, Any] = {"pool": pool, "session_id": f"s-{pool}", "idempotency_key": pool}
    lost = Job(body=chat(), **options)
    await idempotency.claim(pipeline, lost, call=DEAD_CALL, ttl_s=600)
    await records.create(lost, reply_to="", call=DEAD_CALL)
    assert (await lanes.enter(Payload(lost, ""))).status is EnterStatus.RUN
    assert await records.close(lost.id, call=DEAD_CALL) is Closed.CLOSED

    # When it is submitted again
    job = await fleet.submit(chat(), **options)

    # Then it runs once
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    assert [turn.job_id for turn in await fleet.session(f"s-{pool}").turns()] == [job.id]
    with pytest.raises(JobNotFoundError):
        await fleet.get(lost)


async def test_a_job_that_is_submitted_with_another_priority_has_one_place(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    first = await fleet.submit(chat(), pool=pool, priority=1)
    again = await fleet.submit(Job(id=first.id, pool=pool, body=chat(), priority=7))
    assert again.priority == 1

    async def in_one_place() -> bool:
        return (await fleet.pool(pool)).unfinished == {1: 1}

    await eventually(in_one_place)
    assert [record.id async for record in fleet.list_jobs(JobFilter(pool=pool))] == [first.id]


def _lasting(seconds: float) -> dict[str, Any]:
    return {"simulated": slow_chat(tokens=10, step_s=seconds / 10)["simulated"]}


async def session_record(fleet: Fleet, session_id: str) -> Any:
    return await fleet.session(session_id).get()


async def _has_owner(store: aioredis.Redis, session_id: str) -> bool:
    return bool(await store.hget(session_key(session_id), "owner"))


async def _is_claimed(store: aioredis.Redis, key: str) -> bool:
    """Whether somebody submits under the key. One look: other tests have left thousands of records."""
    return bool(await store.exists(idempotency_key(f"{len(DEFAULT_TENANT)}:{DEFAULT_TENANT}", key)))


async def _is_waiting(foreign: ForeignClient) -> bool:
    return await foreign.waiting() == 1


async def _is_empty(foreign: ForeignClient) -> bool:
    return await foreign.waiting() == 0
