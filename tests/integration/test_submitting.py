"""What a submit accepts and refuses, and what it leaves behind in either case."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import PATIENCE_S, Connect, ForeignClient, StartWorker, answer_to, chat

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidJobError,
    JobNotFoundError,
    PartialSubmitError,
    QueueFullError,
    UnknownPoolError,
)
from inferfleet.schemas.job import new_job_id

pytestmark = pytest.mark.matrix


async def test_a_submitted_job_is_queued_with_all_that_its_caller_said(fleet: Fleet, pool: str) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    job = await fleet.submit(
        "hello",
        pool=pool,
        priority=7,
        session_id=f"s-{pool}",
        stream=True,
        expires_at=expires_at,
        timeout_s=30,
        max_attempts=2,
        tenant="acme",
        metadata={"invoice": "42"},
    )
    assert (job.pool, job.priority, job.session_id, job.stream) == (pool, 7, f"@acme/s-{pool}", True)
    assert (job.expires_at, job.timeout_s, job.max_attempts) == (expires_at, 30, 2)
    assert (job.tenant, job.metadata) == ("acme", {"invoice": "42"})
    record = await fleet.get(job)
    assert (record.state, record.pool, record.priority) == (JobState.QUEUED, pool, 7)
    assert (record.attempt, record.result) == (0, None)
    assert abs(record.submitted_at - job.submitted_at) < timedelta(milliseconds=1)  # type: ignore[operator]


async def test_the_message_is_what_the_contract_says(
    fleet: Fleet, foreign: ForeignClient, pool: str, connect: Connect
) -> None:
    async with connect(client_id="billing-1") as billing:
        job = await billing.submit("hello", pool=pool, priority=9)
    message = await foreign.channel.basic_get(f"inferfleet.jobs.{pool}", no_ack=True)
    properties = message.header.properties
    assert Job.model_validate_json(message.body) == job
    assert (properties.message_id, properties.message_type) == (job.id, "inferfleet.job.v1")
    assert (properties.priority, properties.delivery_mode) == (9, 2)
    assert (properties.reply_to, properties.content_type) == ("billing-1", "application/json")


NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - that is what is wrong with it


@pytest.mark.parametrize(
    ("work", "options", "message"),
    [
        ("", {}, r"messages\[0\].content: is empty"),
        ("", {"endpoint": "/v1/completions"}, "prompt: is empty"),
        ("", {"endpoint": "/v1/embeddings"}, "input: is empty"),
        ("hello", {"endpoint": "/v1/rerank"}, "/v1/rerank needs more than a prompt; give the whole body"),
        ({"query": "hello"}, {"endpoint": "/v1/rerank"}, "documents: is missing"),
        (chat(temperature=-0.5), {}, "temperature: -0.5 is below the minimum 0"),
        (chat(max_tokens="many"), {}, "max_tokens: must be a whole number"),
        ({"messages": "hello"}, {}, "messages: must be a list"),
        ({}, {}, "messages: is missing"),
        ([{"role": "user", "content": "hello"}], {}, "must be an object, not a list"),
        (None, {}, "must be an object, not null"),
        (7, {}, "must be an object, not a number"),
        ("hello", {"priority": 10}, "priority: 10 is above the maximum 9"),
        ("hello", {"timeout_s": 0}, "timeout_s: 0 is too low"),
        ("hello", {"endpoint": "/v1/images"}, "endpoint: '/v1/images' is not one of"),
        ("hello", {"pool": "Big GPUs"}, "pool: 'Big GPUs' is not a pool name"),
        ("hello", {"expires_at": NAIVE}, "expires_at: must be a time with its time zone"),
        ("hello", {"metadata": {"n": 1}}, r"metadata.n: must be a string"),
    ],
)
async def test_a_job_that_breaks_the_contract_is_refused_with_a_sentence(
    fleet: Fleet, foreign: ForeignClient, pool: str, work: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidJobError, match=message):
        await fleet.submit(work, **{"pool": pool, **options})
    assert await foreign.waiting() == 0


async def test_a_body_that_is_too_large_is_refused_with_both_numbers(fleet: Fleet, pool: str) -> None:
    with pytest.raises(InvalidJobError, match=r"is 1,048,\d\d\d bytes; the limit is 1,048,576"):
        await fleet.submit("x" * 1024 * 1024, pool=pool)


async def test_a_misspelt_option_is_an_error(fleet: Fleet, pool: str) -> None:
    with pytest.raises(TypeError, match="priorty"):
        await fleet.submit("hello", pool=pool, priorty=9)  # type: ignore[call-arg]


async def test_of_many_jobs_none_is_sent_if_one_breaks_the_contract(
    fleet: Fleet, foreign: ForeignClient, pool: str
) -> None:
    with pytest.raises(InvalidJobError):
        await fleet.submit_many(["one", "two", ""], pool=pool)
    assert await foreign.waiting() == 0


async def test_an_unknown_pool_is_an_error_that_says_what_to_do_and_leaves_no_record(
    fleet: Fleet, store: aioredis.Redis
) -> None:
    job = Job(pool="nobody-serves-this", body=chat())
    with pytest.raises(UnknownPoolError, match="inferfleet pool declare nobody-serves-this"):
        await fleet.submit(job)
    with pytest.raises(JobNotFoundError):
        await fleet.get(job)
    assert not [key async for key in store.scan_iter(f"*{job.id}*", count=10_000)]


async def test_a_full_pool_refuses_and_accepts_again_when_there_is_room(
    connect: Connect, foreign: ForeignClient, pool: str
) -> None:
    # The limit of a quorum queue is inexact.
    async with connect(queue_max_length=2, queue_type="classic") as fleet:
        await fleet.declare_pool(pool)
        await fleet.submit_many(["one", "two"], pool=pool)
        third = Job(pool=pool, body=chat("three"))
        with pytest.raises(QueueFullError, match="is full"):
            await fleet.submit(third)
        with pytest.raises(JobNotFoundError):
            await fleet.get(third)
        await foreign.channel.basic_get(f"inferfleet.jobs.{pool}", no_ack=True)
        await fleet.submit(third)
        assert (await fleet.get(third)).state is JobState.QUEUED


async def test_submit_many_says_which_jobs_were_not_accepted(connect: Connect, pool: str) -> None:
    async with connect(queue_max_length=3, queue_type="classic") as fleet:
        await fleet.declare_pool(pool)
        jobs = [Job(pool=pool, body=chat(str(number))) for number in range(5)]
        with pytest.raises(PartialSubmitError, match="2 of 5 jobs were not accepted") as caught:
            await fleet.submit_many(jobs)
        error = caught.value
        assert len(error.accepted) == 3
        assert {type(problem) for problem in error.rejected.values()} == {QueueFullError}
        rejected = {jobs[position].id for position in error.rejected}
        assert rejected | set(error.accepted) == {job.id for job in jobs}


async def test_a_pool_declared_with_other_arguments_is_a_clear_error_and_the_client_goes_on(
    fleet: Fleet, connect: Connect, pool: str
) -> None:
    async with connect(queue_max_length=5) as other:
        with pytest.raises(ConfigurationError, match="INFERFLEET_QUEUE_MAX_LENGTH"):
            await other.declare_pool(pool)
        assert await other.submit("hello", pool=pool)


async def test_a_pool_must_have_a_pools_name(fleet: Fleet) -> None:
    with pytest.raises(InvalidJobError, match="'Big GPUs' is not a pool name"):
        await fleet.declare_pool("Big GPUs")


# Idempotency


async def test_the_same_key_and_body_give_the_same_job(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    first = await fleet.submit("hello", pool=pool, idempotency_key=pool)
    again = await fleet.submit("hello", pool=pool, idempotency_key=pool)
    assert again.id == first.id
    await start_worker()
    result = await fleet.wait(first, timeout_s=PATIENCE_S)
    assert result.text == answer_to(first)
    after_it_finished = await fleet.submit("hello", pool=pool, idempotency_key=pool)
    assert after_it_finished.id == first.id
    assert await fleet.wait(after_it_finished, timeout_s=PATIENCE_S) == result


async def test_the_same_key_with_another_body_is_an_error(fleet: Fleet, pool: str) -> None:
    first = await fleet.submit("hello", pool=pool, idempotency_key=pool)
    with pytest.raises(IdempotencyConflictError, match=first.id):
        await fleet.submit("good bye", pool=pool, idempotency_key=pool)


async def test_keys_of_different_tenants_do_not_meet(fleet: Fleet, pool: str) -> None:
    """Also where one's name and key, written together, look like the other's."""
    one = await fleet.submit("hello", pool=pool, tenant=f"{pool}", idempotency_key="a:b")
    other = await fleet.submit("hello", pool=pool, tenant=f"{pool}:a", idempotency_key="b")
    assert one.id != other.id


async def test_two_clients_at_once_get_one_job_with_one_key(
    connect: Connect, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    """Whoever's message runs, both are told at once: neither waits for its next look at the records."""
    await start_worker()
    async with connect(state_check_interval_s=3600) as one, connect(state_check_interval_s=3600) as other:
        for round_ in range(10):
            jobs = await asyncio.gather(
                *(
                    client.submit("hello", pool=pool, idempotency_key=f"{pool}-{round_}")
                    for client in (one, other, one, other)
                )
            )
            assert len({job.id for job in jobs}) == 1
            first, second = await asyncio.gather(
                one.wait(jobs[0], timeout_s=PATIENCE_S), other.wait(jobs[0], timeout_s=PATIENCE_S)
            )
            assert first == second
            assert first.attempts == 1


async def test_a_refused_job_frees_its_key(fleet: Fleet, pool: str) -> None:
    nowhere = f"{pool}-x"
    with pytest.raises(UnknownPoolError):
        await fleet.submit("hello", pool=nowhere, idempotency_key=pool)
    assert await fleet.submit("something else", pool=pool, idempotency_key=pool)


async def test_one_client_that_submits_a_job_twice_at_once_to_an_unknown_pool_is_told_twice(
    fleet: Fleet, pool: str
) -> None:
    job = Job(pool=f"{pool}-x", body=chat())
    outcomes = await asyncio.gather(fleet.submit(job), fleet.submit(job), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnknownPoolError, UnknownPoolError]


async def test_a_job_submitted_twice_runs_once(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    job = Job(pool=pool, body=chat())
    await fleet.submit(job)
    await fleet.submit(job)
    worker = await start_worker()
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.attempts == 1
    await worker.stop()
    assert (await fleet.get(job)).attempt == 1


async def test_a_full_pool_does_not_deny_a_job_that_it_has_accepted(connect: Connect, pool: str) -> None:
    """Asking again with the same key is how a caller makes sure; the answer cannot be "not accepted"."""
    async with connect(queue_max_length=1) as fleet:
        await fleet.declare_pool(pool)
        job = await fleet.submit("hello", pool=pool, idempotency_key=pool)
        again = await fleet.submit("hello", pool=pool, idempotency_key=pool)
        assert again.id == job.id
        assert (await fleet.get(job)).state is JobState.QUEUED


async def test_get_many_knows_what_there_is_no_record_of(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hello", pool=pool)
    unknown = new_job_id()
    records = await fleet.get_many([job, unknown, job.id])
    assert set(records) == {job.id, unknown}
    assert records[unknown] is None
    assert records[job.id] == await fleet.get(job)


async def test_an_unknown_job_is_an_error_for_everything_one_can_do_with_it(fleet: Fleet) -> None:
    unknown = new_job_id()
    calls: list[Callable[[], Any]] = [
        lambda: fleet.get(unknown),
        lambda: fleet.wait(unknown),
        lambda: fleet.cancel(unknown),
        lambda: anext(fleet.stream(unknown)),
    ]
    for call in calls:
        with pytest.raises(JobNotFoundError, match=unknown):
            await call()
