"""A record whose job is cancelled, expires or is taken back, and how long it stays after the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import chat, journal_of, kinds_of
from tests.integration.records.conftest import (
    TTL_S,
    append,
    cancel,
    finish,
    release,
    restore,
    start,
    until_stalled,
)
from tests.stores import running_pipeline

from inferfleet.local.services import Services
from inferfleet.schemas import Failure, FailureCode, Job, JobState, Result
from inferfleet.schemas.errors import JobDataLostError, JobNotFoundError
from inferfleet.schemas.names import job_key, journal_key, result_key
from inferfleet.wire.redis.attempts import StartStatus, WriteStatus
from inferfleet.wire.redis.job_reading import Standing
from inferfleet.wire.redis.journal_lines import PendingTokens
from inferfleet.wire.redis.records import Closed, JobRecords, Recorded

pytestmark = pytest.mark.store


async def test_a_queued_job_that_is_cancelled_ends_at_once(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    assert await cancel(records, job) is JobState.CANCELLED
    assert kinds_of(await journal_of(store, job)) == ["queued", "finished"]
    assert (await start(records, job)).status is StartStatus.DONE


async def test_the_failure_of_a_job_that_waits_for_others_may_be_sent_twice(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    """Its sender, whose first answer was lost, still has to tell its client, and those that follow it."""
    failure = Failure(code=FailureCode.PREDECESSOR_FAILED, message="another one has failed")
    result = Result(job_id=job.id, state=JobState.FAILED, error=failure)
    answers = [await records.cancel(job.id, result, tokens=0, only_unready=True) for _ in range(2)]
    assert answers == [JobState.FAILED, JobState.FAILED]
    assert kinds_of(await journal_of(store, job)) == ["queued", "finished"]


async def test_a_running_job_is_marked_and_its_worker_told_with_its_next_write(
    records: JobRecords, job: Job
) -> None:
    started = await start(records, job)
    assert await cancel(records, job) is JobState.RUNNING
    assert (await records.get(job.id)).cancel_requested
    assert await append(records, job, started.fence, 0, 1) is WriteStatus.CANCEL
    assert await release(records, job, started.fence, 1) is WriteStatus.CANCEL
    assert (await start(records, job)).status is StartStatus.CANCELLED


async def test_a_job_stands_as_its_record_says_until_nobody_holds_it(records: JobRecords, job: Job) -> None:
    assert await records.standing(job.id) is Standing.QUEUED
    first = await start(records, job)
    assert await records.standing(job.id) is Standing.RUNNING
    await release(records, job, first.fence)
    second = await start(records, job, lease_s=0.01)
    await until_stalled(records, job)
    assert not Standing.STALLED.over
    # A worker that was only slow has it again with its next write.
    assert await append(records, job, second.fence, 0) is WriteStatus.OK
    assert await records.standing(job.id) is Standing.RUNNING
    await finish(records, job, second.fence)
    assert (await records.standing(job.id)).over
    assert await records.standing(Job(pool=job.pool, body=chat()).id) is Standing.MISSING


async def test_a_job_that_nobody_holds_any_more_is_cancelled_at_once(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    started = await start(records, job, lease_s=0.01)
    assert await append(records, job, started.fence, 0, 1, lease_s=0.01) is WriteStatus.OK
    await until_stalled(records, job)
    assert await cancel(records, job) is JobState.CANCELLED
    # Its worker may be there after all. Whatever it writes is refused, also if it was to end it like that.
    assert await append(records, job, started.fence, 1, 2) is WriteStatus.FENCED
    assert await release(records, job, started.fence, 1) is WriteStatus.FENCED
    result = Result(job_id=job.id, state=JobState.CANCELLED, worker_id="w-1")
    written = await records.finish(job, result, fence=started.fence, pending=PendingTokens(1), reply_to="")
    assert written is WriteStatus.FENCED
    assert await restore(records, job, started.fence, 1, 2) is False
    record = await records.get(job.id)
    assert (record.state, record.result and record.result.worker_id) == ("cancelled", None)
    assert kinds_of(await journal_of(store, job.id)) == ["queued", "running", "tokens", "finished"]
    assert (await start(records, job, "w-2")).status is StartStatus.DONE


async def test_a_worker_is_to_keep_what_a_job_that_nobody_holds_has_said(
    records: JobRecords, job: Job
) -> None:
    started = await start(records, job, lease_s=0.01)
    assert await append(records, job, started.fence, 0, 1, lease_s=0.01) is WriteStatus.OK
    await until_stalled(records, job)
    result = Result(job_id=job.id, state=JobState.CANCELLED)
    assert await records.cancel(job.id, result, keep=True) is JobState.RUNNING
    assert (await start(records, job, "w-2")).status is StartStatus.INTERRUPTED


async def test_a_result_is_made_anew_for_a_job_that_got_on_meanwhile(records: JobRecords, job: Job) -> None:
    """Whoever cancels reads first what the job has come to, and then ends it."""
    result = Result(job_id=job.id, state=JobState.CANCELLED)
    started = await start(records, job)
    await release(records, job, started.fence)
    assert await records.cancel(job.id, result, attempt=0, tokens=0) is None
    assert await records.cancel(job.id, result, attempt=1, tokens=0) is JobState.CANCELLED


async def test_whoever_submits_a_job_that_nobody_holds_is_told_so(records: JobRecords, job: Job) -> None:
    async def submit() -> Recorded:
        return await records.create(job, reply_to="client", call="other")

    assert (await submit()).may_lack_message
    first = await start(records, job)
    assert not (await submit()).may_lack_message
    await release(records, job, first.fence)
    started = await start(records, job, lease_s=0.01)
    await until_stalled(records, job)
    assert (await submit()).stalled
    await finish(records, job, started.fence)
    assert not (await submit()).may_lack_message


async def test_a_job_expires_only_if_it_never_started(records: JobRecords, pool: str) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    late = Job(pool=pool, body=chat(), expires_at=past)
    await records.create(late, reply_to="", call="call")
    assert (await start(records, late)).status is StartStatus.EXPIRED
    # Nor is it run by the next worker, if the first one dies before it has written that down.
    assert (await start(records, late, "w-1")).status is StartStatus.EXPIRED
    again = await start(records, late, "w-1")
    await release(records, late, again.fence)
    assert (await start(records, late, "w-2")).status is StartStatus.EXPIRED
    begun = Job(pool=pool, body=chat())
    await records.create(begun, reply_to="", call="call")
    started = await start(records, begun)
    await release(records, begun, started.fence)
    begun = begun.model_copy(update={"expires_at": past})
    assert (await start(records, begun)).status is StartStatus.STARTED


async def test_a_refused_job_is_forgotten_unless_somebody_runs_it(records: JobRecords, pool: str) -> None:
    refused, running = Job(pool=pool, body=chat()), Job(pool=pool, body=chat())
    for job in (refused, running):
        await records.create(job, reply_to="", call="call")
    await start(records, running)
    for _ in range(2):
        assert await records.close(refused.id, call="call") is Closed.CLOSED
        assert await records.close(running.id, call="call") is Closed.BEGUN
    for _ in range(2):
        assert await records.discard(refused.id)
        assert not await records.discard(running.id)
    assert await records.close(refused.id, call="call") is Closed.MISSING
    with pytest.raises(JobNotFoundError):
        await records.get(refused.id)
    assert (await records.get(running.id)).state is JobState.RUNNING


async def test_a_job_that_two_submit_is_taken_back_by_the_last_of_them_to_be_refused(
    records: JobRecords, job: Job
) -> None:
    await records.create(job, reply_to="client", call="second")
    for _ in range(2):
        assert await records.close(job.id, call="call") is Closed.SHARED
    assert not await records.discard(job.id)
    assert await records.close(job.id, call="second") is Closed.CLOSED
    assert await records.discard(job.id)


async def test_nobody_joins_a_job_that_is_taken_back_unless_it_is_to_stay(
    records: JobRecords, job: Job
) -> None:
    assert await records.close(job.id, call="call") is Closed.CLOSED
    for _ in range(2):
        assert (await records.create(job, reply_to="client", call="late")).closed
    for _ in range(2):
        assert not (await records.create(job, reply_to="client", call="late", keep=True)).closed
    assert not await records.discard(job.id)
    assert await records.close(job.id, call="call") is Closed.SHARED


async def test_a_submission_is_not_taken_for_another_whose_name_begins_the_same(
    records: JobRecords, pool: str
) -> None:
    job = Job(pool=pool, body=chat())
    for call in ("c:11", "c:1"):
        await records.create(job, reply_to="client", call=call)
    assert await records.close(job.id, call="c:1") is Closed.SHARED
    assert await records.close(job.id, call="c:1") is Closed.SHARED
    assert await records.close(job.id, call="c:11") is Closed.CLOSED


async def test_there_is_nothing_to_cancel_where_there_is_no_record(records: JobRecords, pool: str) -> None:
    job = Job(pool=pool, body=chat())
    with pytest.raises(JobNotFoundError):
        await records.cancel(job.id, Result(job_id=job.id, state=JobState.CANCELLED))


# How long a record stays


QUEUED_TTL_S = 10_000


@pytest.fixture
async def patient(services: Services) -> AsyncIterator[JobRecords]:
    """Records of which a message may be in the queue for longer than a result is kept."""
    async with running_pipeline(services.redis_url, patience_s=0) as pipeline:
        yield JobRecords(pipeline=pipeline, result_ttl_s=TTL_S, queued_ttl_s=QUEUED_TTL_S)


async def expired_results(store: aioredis.Redis, job: Job) -> None:
    """Let the time pass after which results, and all that goes with them, are forgotten."""
    for key in (job_key(job.id), journal_key(job.id), result_key(job.id)):
        if 0 < await store.ttl(key) <= TTL_S:
            await store.delete(key)


@pytest.mark.parametrize("begun", ["never begun", "given back", "stalled"])
async def test_a_job_that_was_cancelled_is_not_run_however_late_its_message_comes(
    patient: JobRecords, store: aioredis.Redis, pool: str, begun: str
) -> None:
    job = Job(pool=pool, body=chat())
    await patient.create(job, reply_to="client", call="call")
    if begun != "never begun":
        started = await start(patient, job, lease_s=0.01)
        if begun == "given back":
            await release(patient, job, started.fence)
        else:
            await until_stalled(patient, job)
    assert await cancel(patient, job) is JobState.CANCELLED
    await expired_results(store, job)
    assert (await start(patient, job)).status is StartStatus.DONE
    with pytest.raises(JobDataLostError, match="expired"):
        await patient.get(job.id)


async def published_by_two_calls(records: JobRecords, job: Job) -> None:
    await records.create(job, reply_to="client", call="another")


async def published_again(records: JobRecords, job: Job) -> None:
    await records.copied(job.id)
    await records.copied(job.id)


@pytest.mark.parametrize("published", [published_by_two_calls, published_again])
@pytest.mark.parametrize("ends_first", [False, True])
async def test_a_job_that_has_ended_is_not_run_by_a_second_message_however_late_it_comes(
    patient: JobRecords, store: aioredis.Redis, pool: str, published: Any, ends_first: bool
) -> None:
    job = Job(pool=pool, body=chat())
    await patient.create(job, reply_to="client", call="call")
    if published is published_by_two_calls or not ends_first:
        await published(patient, job)
    started = await start(patient, job)
    assert await finish(patient, job, started.fence) is WriteStatus.OK
    if ends_first:
        await published(patient, job)
    await expired_results(store, job)
    assert (await start(patient, job)).status is StartStatus.DONE


async def test_a_turn_that_has_ended_is_not_run_by_a_second_message_however_late_it_comes(
    patient: JobRecords, store: aioredis.Redis, pool: str
) -> None:
    """Whoever enters a session may publish the turn in front once more."""
    job = Job(pool=pool, body=chat(), session_id=pool)
    await patient.create(job, reply_to="client", call="call")
    started = await start(patient, job)
    # Redis has lost it meanwhile.
    await store.delete(job_key(job.id))
    assert await restore(patient, job, started.fence)
    assert await finish(patient, job, started.fence) is WriteStatus.OK
    await expired_results(store, job)
    assert (await start(patient, job)).status is StartStatus.DONE


async def test_a_job_with_one_message_is_forgotten_with_its_result(
    patient: JobRecords, store: aioredis.Redis, pool: str
) -> None:
    job = Job(pool=pool, body=chat())
    await patient.create(job, reply_to="client", call="call")
    await finish(patient, job, (await start(patient, job)).fence)
    await expired_results(store, job)
    with pytest.raises(JobNotFoundError):
        await patient.get(job.id)


async def test_a_job_that_runs_for_long_keeps_its_record_and_its_journal(
    patient: JobRecords, store: aioredis.Redis, pool: str
) -> None:
    job = Job(pool=pool, body=chat())
    await patient.create(job, reply_to="client", call="call")
    fence = (await start(patient, job)).fence
    for key in (job_key(job.id), journal_key(job.id)):
        await store.expire(key, QUEUED_TTL_S // 3)
    assert await append(patient, job, fence, 0) is WriteStatus.OK
    for key in (job_key(job.id), journal_key(job.id)):
        assert await store.ttl(key) > QUEUED_TTL_S // 2
