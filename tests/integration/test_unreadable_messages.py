"""What a message belongs to that is no job ends all the same: the record, the waits, the session's lane."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any
from uuid import uuid4

import aiormq
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
    journal_of,
    kinds_of,
    slow_chat,
    until_running,
)
from tests.integration.raw_publisher import RawPublisher

from inferfleet.producer import Fleet
from inferfleet.schemas import FailureCode, Job, JobState, Result
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.message import derived_id
from inferfleet.schemas.names import dead_queue, job_key, job_queue, reply_key

REPLY_TO = 1 << 9
"""The flag of that property (AMQP 0-9-1, 4.2.6.1)."""


def job_body(**fields: Any) -> bytes:
    return json.dumps({"id": new_job_id(), "body": chat(), **fields}).encode()


def failure_of(result: Result) -> str:
    """Why it failed, and only that way."""
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    return result.error.message


async def replies_to(store: aioredis.Redis, client: str) -> list[tuple[str, str]]:
    lines: Any = await store.xrange(reply_key(client))
    return [(fields[b"job"].decode(), fields[b"state"].decode()) for _, fields in lines if b"job" in fields]


async def replied(store: aioredis.Redis, client: str, job_id: str) -> None:
    """Wait for the line that says that the job failed."""

    async def told() -> bool:
        return (job_id, "failed") in await replies_to(store, client)

    await eventually(told)


@pytest.mark.parametrize(
    ("body", "properties", "why"),
    [
        pytest.param(b'{"id": ', {}, "is not JSON", id="bad JSON"),
        pytest.param(b"\xff\xfe", {}, "is not JSON", id="no text"),
        pytest.param(b"[" * 2000, {}, "is not JSON", id="two thousand levels"),
        pytest.param(b"[1]", {}, "must be an object", id="a list"),
        pytest.param(json.dumps({"body": chat()}).encode(), {}, "id: missing", id="no id"),
        pytest.param(job_body(id="42"), {}, "id: '42' is not a UUID", id="a bad id"),
        pytest.param(job_body(endpoint="/v1/images"), {}, "endpoint: '/v1/images'", id="a bad endpoint"),
        pytest.param(job_body(priority=11), {}, "priority: 11", id="a bad priority"),
        pytest.param(
            job_body(),
            {"message_type": "inferfleet.task.v1"},
            "type: 'inferfleet.task.v1' is not 'inferfleet.job.v1'",
            id="another type of ours",
        ),
        pytest.param(
            gzip.compress(job_body()),
            {"content_encoding": "gzip"},
            "content_encoding is 'gzip', but a body must be plain JSON",
            id="a compressed body",
        ),
    ],
)
async def test_a_publisher_who_gave_an_id_and_an_address_gets_its_end(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    body: bytes,
    properties: dict[str, Any],
    why: str,
) -> None:
    message_id, client = new_job_id(), f"client-{uuid4()}"
    # The body's own id counts, if it has one: that is where its publisher looks for the result.
    said = json.loads(body).get("id", "") if body.startswith(b"{") and body.endswith(b"}") else ""
    job_id = said if len(said) == 36 else message_id
    await start_worker()
    await foreign.publish(body, message_id=message_id, reply_to=client, **properties)
    await replied(store, client, job_id)
    assert why in failure_of(await fleet.wait(job_id, timeout_s=PATIENCE_S))
    assert kinds_of(await journal_of(store, job_id))[-1] == "finished"
    letter = await foreign.dead_letter()
    assert letter.body == body
    assert why in str((letter.header.properties.headers or {})["x-inferfleet-message"])
    assert await foreign.waiting() == 0


async def test_whoever_gave_only_an_address_gets_an_end_under_a_name_that_can_be_computed(
    fleet: Fleet, raw: RawPublisher, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    client = f"client-{uuid4()}"
    await start_worker()
    await raw.publish(REPLY_TO, bytes([len(client)]) + client.encode(), b"garbage")
    await foreign.publish(b"garbage", reply_to=client, message_id="42")
    for message_id in (None, "42"):
        job_id = derived_id(b"garbage", message_id)
        await replied(store, client, job_id)
        assert "is not JSON" in failure_of(await fleet.wait(job_id, timeout_s=PATIENCE_S))


async def test_what_belongs_to_nobody_leaves_no_record(
    fleet: Fleet, raw: RawPublisher, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    body = b"garbage %s" % uuid4().hex.encode()
    await start_worker()
    await raw.publish(0, b"", body)
    letter = await foreign.dead_letter()
    name = letter.header.properties.message_id
    assert name == derived_id(body, None)
    assert not await store.exists(job_key(name))


async def take_message(foreign: ForeignClient) -> Any:
    """Take the only message out of the pool's queue."""
    message = await foreign.channel.basic_get(job_queue(foreign.pool), no_ack=True)
    assert await foreign.waiting() == 0
    return message


async def test_an_accepted_turn_that_no_worker_can_read_fails_and_the_next_one_runs(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    session = fleet.session(f"s-{uuid4()}")
    first, second = [await session.send(text, pool=pool) for text in ("first", "second")]
    message = await take_message(foreign)
    # Not even the session's name can be read.
    await foreign.channel.basic_publish(
        b"\x00garbage",
        exchange="inferfleet.jobs",
        routing_key=pool,
        properties=aiormq.spec.Basic.Properties(
            message_id=message.header.properties.message_id, reply_to=message.header.properties.reply_to
        ),
    )
    await start_worker()
    assert "is not JSON" in failure_of(await fleet.wait(first, timeout_s=PATIENCE_S))
    assert (await fleet.wait(second, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    assert [one["role"] for one in await session.history()] == ["user", "assistant"]


@pytest.mark.parametrize("repeats_the_address", [True, False])
@pytest.mark.parametrize("same_worker", [True, False])
async def test_garbage_with_the_id_of_a_running_job_does_not_end_it(
    fleet: Fleet,
    connect: Connect,
    foreign: ForeignClient,
    start_worker: StartWorker,
    pool: str,
    same_worker: bool,
    repeats_the_address: bool,
) -> None:
    client = f"client-{uuid4()}"
    async with connect(client_id=client) as owner:
        await start_worker(max_running=1 if not same_worker else 4, look_ahead=0, lease_s=1)
        job = await owner.submit(slow_chat(tokens=60, step_s=0.05), pool=pool)
        await until_running(fleet, job)
        if not same_worker:
            await start_worker(lease_s=1)
        address = {"reply_to": client} if repeats_the_address else {}
        await foreign.publish(b"garbage", message_id=job.id, **address)
        result = await owner.wait(job, timeout_s=PATIENCE_S)
        assert (result.state, result.text, result.attempts) == (JobState.SUCCEEDED, answer_to(job), 1)
        assert (await foreign.dead_letter()).body == b"garbage"
        assert (await owner.get(job)).result == result


async def test_garbage_with_the_id_of_a_job_that_has_ended_changes_nothing(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit("hello", pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    journal = await journal_of(store, job)
    reply_to = (await fleet.get(job)).reply_to
    await foreign.publish(b"garbage", message_id=job.id, reply_to=reply_to)
    assert (await foreign.dead_letter()).body == b"garbage"
    assert (await fleet.get(job)).result == result
    assert await journal_of(store, job) == journal


async def test_garbage_with_the_id_of_somebody_elses_waiting_job_does_not_end_it(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    client = f"client-{uuid4()}"
    job = await fleet.submit(chat(), pool=pool)
    message = await take_message(foreign)
    await start_worker()
    await foreign.publish(b"garbage", message_id=job.id, reply_to=client)
    await replied(store, client, derived_id(b"garbage", job.id))
    assert (await fleet.get(job)).state is JobState.QUEUED
    await foreign.publish(message.body, message_id=job.id, reply_to=message.header.properties.reply_to)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


async def test_the_worker_runs_what_comes_although_much_of_it_is_garbage(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(max_running=2, look_ahead=0)
    jobs: list[Job] = []
    for number in range(30):
        await foreign.publish(b"garbage %d" % number, reply_to=f"client-{number}")
        jobs.append(await fleet.submit(f"job {number}", pool=pool))
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert [result.text for result in results] == [answer_to(job) for job in jobs]

    async def all_buried() -> bool:
        return await foreign.waiting(dead_queue(pool)) == 30

    await eventually(all_buried)


async def test_a_cancelled_turn_lets_the_next_one_run_also_when_its_message_never_comes(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    session = fleet.session(f"s-{uuid4()}")
    first, second = [await session.send(text, pool=pool) for text in ("first", "second")]
    await take_message(foreign)
    assert await fleet.cancel(first) is JobState.CANCELLED
    assert await foreign.waiting() == 1
    await start_worker()
    async with asyncio.timeout(PATIENCE_S):
        assert (await fleet.wait(second)).state is JobState.SUCCEEDED
    assert [one["role"] for one in await session.history()] == ["user", "assistant"]


async def test_a_cancelled_turn_does_not_have_the_next_one_wait_for_its_place_in_the_queue(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    session = fleet.session(f"s-{uuid4()}")
    first = await session.send("first", pool=pool, priority=0)
    second = await session.send("second", pool=pool, priority=9)
    third = await session.send("third", pool=pool)
    await fleet.cancel(first)
    assert await foreign.waiting() == 2
    await start_worker()
    for job in (second, third):
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    assert (await fleet.get(first)).state is JobState.CANCELLED
    assert len(await session.history()) == 4
