"""The record of a job, changed by scripts in Redis: who may change what; a repeated call does nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import assert_whole, chat, eventually, journal_of, kinds_of
from tests.integration.records.conftest import (
    START,
    TTL_S,
    append,
    cancel,
    finish,
    release,
    restart,
    start,
)

from inferfleet.schemas import Job, JobState, Result
from inferfleet.schemas.journal import (
    RestartedEntry,
    RestartReason,
    RunningEntry,
)
from inferfleet.schemas.names import job_key, journal_key, reply_key, result_key
from inferfleet.wire.redis.attempts import StartStatus, WriteStatus
from inferfleet.wire.redis.journal_lines import PendingTokens, generated
from inferfleet.wire.redis.records import Closed, JobRecords, Recorded

pytestmark = pytest.mark.store


# The way of a job


async def test_a_job_runs_from_its_start_to_its_result(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    started = await start(records, job)
    assert (started.status, started.fence.attempt, started.charged) == (StartStatus.STARTED, 1, 1)
    assert (started.tokens, started.restart, started.reply_to) == (0, None, "client")
    assert await append(records, job, started.fence, 0, 1, 2, 3) is WriteStatus.OK
    assert await append(records, job, started.fence, 3) is WriteStatus.OK
    assert await append(records, job, started.fence, 3, 4, 5) is WriteStatus.OK
    record = await records.get(job.id)
    assert (record.state, record.attempt, record.worker_id, record.tokens) == ("running", 1, "w-1", 5)
    assert await finish(records, job, started.fence, 5, 6) is WriteStatus.OK
    record = await records.get(job.id)
    assert (record.state, record.tokens) == (JobState.SUCCEEDED, 6)
    assert record.result is not None
    assert record.finished_at is not None
    entries = await journal_of(store, job)
    assert kinds_of(entries) == ["queued", "running", "tokens", "finished"]
    assert_whole(entries)
    assert [token for chunk in generated(entries) for token in chunk.token_ids] == [1, 2, 3, 4, 5, 6]
    for key in (job_key(job.id), journal_key(job.id), result_key(job.id)):
        assert 0 < await store.ttl(key) <= TTL_S


async def test_the_client_hears_of_the_end_through_its_reply_stream(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    await store.delete(reply_key("client"))
    started = await start(records, job)
    await finish(records, job, started.fence)
    lines: Any = []

    async def told() -> bool:
        lines[:] = await store.xrange(reply_key("client"))
        return bool(lines)

    # In a cluster, it is in another slot than the record.
    await eventually(told)
    assert {(fields[b"job"].decode(), fields[b"state"]) for _, fields in lines} == {(job.id, b"succeeded")}
    assert await store.ttl(reply_key("client")) > 0


async def test_a_copy_of_a_start_that_comes_after_the_release_starts_nothing(
    records: JobRecords, job: Job
) -> None:
    """Bytes of a connection that was given up may arrive late."""
    first = await start(records, job, token="held up")
    await release(records, job, first.fence, 0)
    late = await start(records, job, token="held up")
    assert late.status is StartStatus.BUSY
    assert (await records.get(job.id)).state is JobState.QUEUED
    assert (await start(records, job)).status is StartStatus.STARTED


async def test_a_copy_of_a_start_that_was_refused_starts_nothing_either(
    records: JobRecords, job: Job
) -> None:
    first = await start(records, job)
    assert (await start(records, job, "w-2", token="held up")).status is StartStatus.BUSY
    await release(records, job, first.fence, 0)
    assert (await start(records, job, "w-2", token="held up")).status is StartStatus.BUSY
    assert (await records.get(job.id)).state is JobState.QUEUED
    assert (await start(records, job, "w-2")).fence.attempt == 2


async def test_a_released_job_is_continued_from_its_tokens(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    first = await start(records, job)
    await append(records, job, first.fence, 0, 1, 2)
    assert await release(records, job, first.fence, 2, 3) is WriteStatus.OK
    record = await records.get(job.id)
    assert (record.state, record.worker_id, record.tokens) == (JobState.QUEUED, None, 3)
    second = await start(records, job, "w-2")
    assert (second.status, second.fence.attempt, second.tokens) == (StartStatus.STARTED, 2, 3)
    await finish(records, job, second.fence, 3, 4)
    entries = await journal_of(store, job)
    assert_whole(entries)
    assert [entry.resumed_from for entry in entries if isinstance(entry, RunningEntry)] == [0, 3]


async def test_what_cannot_be_continued_starts_again_and_says_what_it_cost(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    first = await start(records, job)
    await release(records, job, first.fence, 0, 1, 2, 3)
    second = await start(records, job, "w-2", resumable=False)
    assert (second.tokens, second.restart) == (3, RestartReason.NOT_RESUMABLE)
    fence = await restart(records, job, second, RestartReason.NOT_RESUMABLE)
    entries = await journal_of(store, job)
    assert kinds_of(entries) == ["queued", "running", "tokens", "queued", "restarted", "running"]
    assert [entry.tokens_wasted for entry in entries if isinstance(entry, RestartedEntry)] == [3]
    assert generated(entries) == ()
    assert (await records.get(job.id)).tokens == 0
    assert await append(records, job, fence, 0, 4) is WriteStatus.OK


async def test_another_model_does_not_go_on_with_an_answer(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    first = await start(records, job)
    assert first.model_identity == "model-a"
    await release(records, job, first.fence, 0, 1, 2, 3)
    second = await start(records, job, "w-2", model_identity="model-b")
    assert (second.restart, second.tokens, second.model_identity) == (
        RestartReason.ANOTHER_MODEL,
        3,
        "model-a",
    )
    assert (await records.get(job.id)).model_identity == "model-a"
    fence = await restart(records, job, second, RestartReason.ANOTHER_MODEL, "model-b")
    assert await append(records, job, fence, 0, 7) is WriteStatus.OK
    record = await records.get(job.id)
    assert (record.model_identity, record.tokens) == ("model-b", 1)
    entries = await journal_of(store, job)
    running = [entry.model_identity for entry in entries if isinstance(entry, RunningEntry)]
    assert running == ["model-a", "model-b"]
    assert [token for chunk in generated(entries) for token in chunk.token_ids] == [7]


async def test_the_same_model_goes_on_and_so_does_one_that_comes_back(records: JobRecords, job: Job) -> None:
    first = await start(records, job)
    await release(records, job, first.fence, 0, 1, 2, 3)
    other = await start(records, job, "w-2", model_identity="model-b")
    # It was told to stop before it had begun the answer again.
    await release(records, job, other.fence, 0)
    third = await start(records, job, "w-3")
    assert (third.restart, third.tokens) == (None, 3)


async def test_tokens_of_nobody_knows_which_model_are_not_continued(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    first = await start(records, job)
    await release(records, job, first.fence, 0, 1, 2, 3)
    await store.hdel(job_key(job.id), "model_identity")
    assert (await start(records, job)).restart is RestartReason.ANOTHER_MODEL


async def test_a_write_does_not_fit_when_redis_has_lost_the_restart_before_it(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    first = await start(records, job)
    await release(records, job, first.fence, 0, 1, 2, 3)
    second = await start(records, job, "w-2", model_identity="model-b")
    kept = await store.dump(job_key(job.id))
    assert kept is not None
    fence = await restart(records, job, second, RestartReason.ANOTHER_MODEL, "model-b")
    # A failover to a replica that had not heard of it.
    await store.restore(job_key(job.id), 60_000, kept, replace=True)
    assert await append(records, job, fence, 0, 7) is WriteStatus.FENCED
    assert await finish(records, job, fence, 0, 7) is WriteStatus.FENCED


async def test_a_late_copy_of_a_start_or_a_restart_changes_nothing(records: JobRecords, job: Job) -> None:
    first = await start(records, job)
    await release(records, job, first.fence, 0, 1, 2, 3)
    arguments: dict[str, Any] = {"token": "late", "model_identity": "model-b"}
    second = await start(records, job, "w-2", **arguments)
    fence = await restart(records, job, second, RestartReason.ANOTHER_MODEL, "model-b")
    assert await append(records, job, fence, 0, 7) is WriteStatus.OK
    again = await start(records, job, "w-2", **arguments)
    assert (again.fence.attempt, again.restart) == (2, None)
    await restart(records, job, second, RestartReason.ANOTHER_MODEL, "model-b")
    assert (await records.get(job.id)).tokens == 1
    assert await release(records, job, fence, 1) is WriteStatus.OK
    assert (await records.start(job, **{**START, **arguments, "worker_id": "w-2"})).status is StartStatus.BUSY


async def test_an_attempt_that_is_refunded_does_not_count(records: JobRecords, job: Job) -> None:
    for attempt in range(1, 8):
        started = await start(records, job)
        assert (started.status, started.fence.attempt, started.charged) == (StartStatus.STARTED, attempt, 1)
        await release(records, job, started.fence, refund=True)


async def test_after_its_last_attempt_a_job_is_exhausted(records: JobRecords, job: Job) -> None:
    for charged in (1, 2, 3):
        started = await start(records, job)
        assert (started.status, started.charged) == (StartStatus.STARTED, charged)
        await release(records, job, started.fence)
    assert (await start(records, job)).status is StartStatus.EXHAUSTED


async def test_a_job_that_may_have_killed_its_workers_runs_alone(records: JobRecords, job: Job) -> None:
    for _ in range(2):
        started = await start(records, job, alone=False)
        assert started.status is StartStatus.STARTED
        await release(records, job, started.fence)
    assert (await start(records, job, alone=False)).status is StartStatus.SUSPECT
    assert (await records.get(job.id)).state is JobState.QUEUED
    assert (await start(records, job, alone=True)).status is StartStatus.STARTED


# The fence


async def test_while_its_lease_lives_nobody_else_starts_a_job(records: JobRecords, job: Job) -> None:
    started = await start(records, job, lease_s=60)
    busy = await start(records, job, "w-2")
    assert busy.status is StartStatus.BUSY
    assert 55 < busy.busy_s <= 60
    assert await finish(records, job, started.fence) is WriteStatus.OK


async def test_a_clock_that_is_set_back_makes_no_lease_and_no_pause_longer(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    an_hour_ms = 3600_000

    async def set_back() -> None:
        lease: Any = await store.hget(job_key(job.id), "lease")
        await store.hset(job_key(job.id), "lease", int(lease) + an_hour_ms)

    # Its worker is dead.
    started = await start(records, job, lease_s=60)
    await set_back()
    busy = await start(records, job, "w-2", lease_s=5)
    assert busy.status is StartStatus.BUSY
    assert 55 < busy.busy_s <= 60
    # Another one is alive, and goes on.
    assert await append(records, job, started.fence, 0, 1) is WriteStatus.OK
    assert await release(records, job, started.fence, 1, pause_s=90) is WriteStatus.OK
    await set_back()
    busy = await start(records, job, "w-2")
    assert busy.status is StartStatus.BUSY
    assert 85 < busy.busy_s <= 90


async def test_a_worker_may_take_its_own_job_again(records: JobRecords, job: Job) -> None:
    """It was killed and came back under its name, before its lease was over."""
    await start(records, job)
    again = await start(records, job)
    assert (again.status, again.fence.attempt) == (StartStatus.STARTED, 2)


async def test_whoever_lost_a_job_can_change_nothing(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    lost = await start(records, job, lease_s=0)
    await append(records, job, lost.fence, 0, 1, 2)
    await store.hset(job_key(job.id), "lease", 1)
    taken = await start(records, job, "w-2")
    assert taken.status is StartStatus.STARTED
    before = await journal_of(store, job)
    assert await append(records, job, lost.fence, 2, 3) is WriteStatus.FENCED
    assert await release(records, job, lost.fence, 2, 3) is WriteStatus.FENCED
    assert await finish(records, job, lost.fence, 2, 3) is WriteStatus.FENCED
    assert await journal_of(store, job) == before
    assert (await records.get(job.id)).worker_id == "w-2"
    assert await finish(records, job, taken.fence, 2, 9) is WriteStatus.OK
    assert await finish(records, job, lost.fence, 2, 3) is WriteStatus.FENCED
    result = (await records.get(job.id)).result
    assert result is not None
    assert result.worker_id == taken.fence.token


async def test_a_terminal_state_never_changes(records: JobRecords, job: Job, store: aioredis.Redis) -> None:
    started = await start(records, job)
    await finish(records, job, started.fence)
    before = (await records.get(job.id), await journal_of(store, job))
    assert (await start(records, job)).status is StartStatus.DONE
    assert await cancel(records, job) is JobState.SUCCEEDED
    assert await append(records, job, started.fence, 0, 1) is WriteStatus.FENCED
    assert await release(records, job, started.fence) is WriteStatus.FENCED
    failed = Result(job_id=job.id, state=JobState.FAILED)
    written = await records.finish(job, failed, fence=started.fence, pending=PendingTokens(0), reply_to="")
    assert written is WriteStatus.FENCED
    assert await records.close(job.id, call="call") is Closed.BEGUN
    assert not await records.discard(job.id)
    joined = await records.create(job, reply_to="x", call="other")
    assert joined._replace(entered=None) == Recorded(
        state=JobState.SUCCEEDED, attempt=1, closed=False, pool=job.pool, priority=job.priority
    )
    assert (await records.get(job.id), await journal_of(store, job)) == before


# Reading many


async def test_many_records_are_read_in_any_number(records: JobRecords, pool: str) -> None:
    jobs = [Job(pool=pool, body=chat()) for _ in range(1201)]
    await asyncio.gather(*(records.create(job, reply_to="", call="call") for job in jobs))
    started = await start(records, jobs[0])
    await finish(records, jobs[0], started.fence)
    found = await records.get_many([job.id for job in [*jobs, jobs[3]]])
    assert list(found) == [job.id for job in jobs]
    assert [record.state for record in found.values() if record] == [JobState.SUCCEEDED, *["queued"] * 1200]
    assert list(await records.results([job.id for job in jobs])) == [jobs[0].id]
