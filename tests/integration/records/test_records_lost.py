"""A record that Redis has lost in part, and changes of it that come after others have acted."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import chat, journal_of
from tests.integration.records.conftest import (
    START,
    append,
    finish,
    release,
    restart,
    restore,
    start,
)

from inferfleet.schemas import Failure, FailureCode, Job
from inferfleet.schemas.journal import (
    AnswerHead,
    RestartReason,
    TokenChunk,
)
from inferfleet.schemas.names import job_key, journal_key
from inferfleet.wire.redis.attempts import StartStatus, WriteStatus
from inferfleet.wire.redis.journal_lines import PendingTokens, generated
from inferfleet.wire.redis.records import JobRecords

pytestmark = pytest.mark.store


# A Redis that lost something


async def test_the_message_is_the_record_where_there_is_none(records: JobRecords, pool: str) -> None:
    job = Job(pool=pool, body=chat(), priority=7)
    started = await start(records, job, reply_to="somebody")
    assert (started.status, started.fence.attempt, started.reply_to) == (StartStatus.STARTED, 1, "somebody")
    record = await records.get(job.id)
    assert (record.pool, record.priority, record.reply_to) == (pool, 7, "somebody")


# What is held up on its way, and comes after others have acted


async def test_a_copy_of_a_start_that_comes_after_a_later_one_starts_nothing(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    first = {**START, "token": "w-1:first", "worker_id": "w-1"}
    started = await records.start(job, **first)
    for _ in range(3):
        await release(records, job, started.fence)
        started = await start(records, job, "w-1")
        before = await store.hgetall(job_key(job.id))
        assert (await records.start(job, **first)).status is StartStatus.BUSY
        assert await store.hgetall(job_key(job.id)) == before
    # Nor when its attempt has begun its answer again.
    fence = await restart(records, job, started, RestartReason.NOT_RESUMABLE)
    await release(records, job, fence)
    await start(records, job, "w-1")
    late = await records.start(job, **{**first, "token": started.fence.token})
    assert late.status is StartStatus.BUSY


@pytest.mark.parametrize("end", [finish, release])
async def test_a_copy_of_a_restore_that_comes_late_does_not_bring_a_job_back(
    records: JobRecords, job: Job, store: aioredis.Redis, end: Any
) -> None:
    started = await start(records, job)
    await store.delete(job_key(job.id), journal_key(job.id))
    assert await restore(records, job, started.fence, 1)
    assert await end(records, job, started.fence, 1, 2) is WriteStatus.OK
    before = await store.hgetall(job_key(job.id))
    assert not await restore(records, job, started.fence, 1)
    assert await store.hgetall(job_key(job.id)) == before
    assert len(await records.journal(job.id)) == len(await journal_of(store, job.id))


async def test_a_copy_of_a_restore_that_comes_late_takes_no_tokens_back(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    started = await start(records, job)
    await store.delete(job_key(job.id), journal_key(job.id))
    assert await restore(records, job, started.fence, 1)
    assert await append(records, job, started.fence, 1, 2, 3) is WriteStatus.OK
    assert await restore(records, job, started.fence, 1)
    assert await records.whole_answer(job.id, tokens=3) is not None


async def test_a_restored_turn_still_belongs_to_its_session(
    records: JobRecords, store: aioredis.Redis, pool: str
) -> None:
    job = Job(pool=pool, body=chat(), session_id=pool)
    started = await start(records, job)
    assert (await records.get(job.id)).session_id == pool
    await store.delete(job_key(job.id), journal_key(job.id))
    assert await restore(records, job, started.fence)
    assert (await records.get(job.id)).session_id == pool


# What Redis has lost


async def test_a_job_that_no_worker_can_run_ends_with_what_it_has_said(records: JobRecords, job: Job) -> None:
    started = await start(records, job)
    said = PendingTokens(
        0,
        (TokenChunk(token_ids=(1, 2), text="so far"),),
        AnswerHead(endpoint=job.endpoint, model="m", prompt_tokens=3),
    )
    await records.append(job.id, fence=started.fence, lease_s=60, pending=said)
    await release(records, job, started.fence, 2)
    failure = Failure(code=FailureCode.MODEL_UNAVAILABLE, message="no pool")
    await records.fail(job, failure, worker_id="w-2", lease_s=60, reply_to="client")
    result = (await records.get(job.id)).result
    assert result is not None
    assert (result.state, result.text, result.usage.prompt_tokens) == ("failed", "so far", 3)
    assert result.usage.completion_tokens == 2


async def test_a_worker_brings_back_what_redis_lost(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    started = await start(records, job)
    await append(records, job, started.fence, 0, 1, 2)
    await store.delete(job_key(job.id), journal_key(job.id))
    assert await append(records, job, started.fence, 2, 3) is WriteStatus.MISSING
    assert await restore(records, job, started.fence, 1, 2, 3)
    assert await append(records, job, started.fence, 2, 3) is WriteStatus.OK
    assert await finish(records, job, started.fence, 3, 4) is WriteStatus.OK
    entries = await journal_of(store, job)
    assert [token for chunk in generated(entries) for token in chunk.token_ids] == [1, 2, 3, 4]
    assert (await records.get(job.id)).reply_to == "client"


async def test_a_worker_that_comes_too_late_does_not_bring_its_state_back(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    lost = await start(records, job)
    await store.delete(job_key(job.id), journal_key(job.id))
    taken = await start(records, job, "w-2")
    assert not await restore(records, job, lost.fence, 1, 2)
    assert await append(records, job, lost.fence, 2, 3) is WriteStatus.FENCED
    assert await append(records, job, taken.fence, 0, 1) is WriteStatus.OK


@pytest.mark.parametrize("write", [append, release, finish])
async def test_a_replica_that_lagged_leaves_no_gap_in_the_journal(
    records: JobRecords, job: Job, store: aioredis.Redis, write: Any
) -> None:
    """After a failover the record is there, but the latest tokens are not."""
    started = await start(records, job)
    await append(records, job, started.fence, 0, 1, 2)
    await append(records, job, started.fence, 2, 3, 4)
    lines: Any = await store.xrange(journal_key(job.id))
    await store.xdel(journal_key(job.id), lines[-1][0])
    await store.hset(job_key(job.id), "tokens", 2)
    assert await write(records, job, started.fence, 4, 5) is WriteStatus.MISSING
    assert await restore(records, job, started.fence, 1, 2, 3, 4, 5)
    assert await write(records, job, started.fence, 4, 5) is WriteStatus.OK
    tokens = [token for chunk in generated(await journal_of(store, job)) for token in chunk.token_ids]
    assert tokens == [1, 2, 3, 4, 5]


async def rollback(store: aioredis.Redis, job: Job, state: list[Any]) -> None:
    for key, dump in zip((job_key(job.id), journal_key(job.id)), state, strict=True):
        await store.restore(key, 0, dump, replace=True)


async def state_of(store: aioredis.Redis, job: Job) -> list[Any]:
    return [await store.dump(key) for key in (job_key(job.id), journal_key(job.id))]


@pytest.mark.parametrize("write", [append, release, finish])
async def test_a_worker_whose_start_a_failover_forgot_goes_on(
    records: JobRecords, job: Job, store: aioredis.Redis, write: Any
) -> None:
    """The record is there, and says that nobody has begun the job."""
    accepted = await state_of(store, job)
    started = await start(records, job)
    await append(records, job, started.fence, 0, 1, 2)
    await rollback(store, job, accepted)
    assert await write(records, job, started.fence, 2, 3) is WriteStatus.MISSING
    assert await restore(records, job, started.fence, 1, 2)
    assert (await start(records, job, "w-2")).status is StartStatus.BUSY
    assert await write(records, job, started.fence, 2, 3) is WriteStatus.OK
    entries = await journal_of(store, job)
    assert [token for chunk in generated(entries) for token in chunk.token_ids] == [1, 2, 3]


async def test_a_worker_whose_start_a_failover_forgot_before_it_restarted_is_told_so(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    accepted = await state_of(store, job)
    started = await start(records, job)
    await rollback(store, job, accepted)
    restarting: dict[str, Any] = {"worker_id": "w-1", "model_identity": "model-a", "tokens_wasted": 0}
    restarted = await records.restart(
        job.id, fence=started.fence, reason=RestartReason.JOURNAL_LOST, **restarting
    )
    assert restarted is WriteStatus.MISSING


@pytest.mark.parametrize("end", [finish, release])
async def test_a_worker_whose_start_a_failover_forgot_gives_way_to_another(
    records: JobRecords, job: Job, store: aioredis.Redis, end: Any
) -> None:
    accepted = await state_of(store, job)
    lost = await start(records, job)
    await rollback(store, job, accepted)
    other = await start(records, job, "w-2")
    assert await append(records, job, lost.fence, 0, 1) is WriteStatus.FENCED
    assert not await restore(records, job, lost.fence, 1)
    await end(records, job, other.fence, 0, 2)
    assert await append(records, job, lost.fence, 0, 1) is WriteStatus.FENCED
    assert not await restore(records, job, lost.fence, 1)
