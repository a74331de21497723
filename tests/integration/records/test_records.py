"""The record of a job, changed by scripts in Redis: who may change what; a repeated call does nothing.

Every change is made twice here, as it is when the first answer got lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import assert_whole, chat, eventually, journal_of, kinds_of
from tests.stores import running_pipeline

from inferfleet.local.services import Services
from inferfleet.schemas import Failure, FailureCode, Job, JobState, Result
from inferfleet.schemas.errors import JobDataLostError, JobNotFoundError
from inferfleet.schemas.journal import (
    AnswerHead,
    QueuedEntry,
    RestartedEntry,
    RestartReason,
    RunningEntry,
    TokenChunk,
)
from inferfleet.schemas.names import job_key, journal_key, reply_key, result_key
from inferfleet.wire.redis.attempts import Fence, Started, StartStatus, WriteStatus
from inferfleet.wire.redis.job_reading import Standing
from inferfleet.wire.redis.journal_lines import PendingTokens, generated
from inferfleet.wire.redis.records import Closed, JobRecords, Recorded

pytestmark = pytest.mark.store

TTL_S = 300


@pytest.fixture
async def records(services: Services) -> AsyncIterator[JobRecords]:
    async with running_pipeline(services.redis_url, patience_s=0) as pipeline:
        yield JobRecords(pipeline=pipeline, result_ttl_s=TTL_S, queued_ttl_s=TTL_S)


@pytest.fixture
async def job(records: JobRecords, pool: str) -> Job:
    """A job that was accepted; its client is called ``client``."""
    job = Job(pool=pool, body=chat(), max_attempts=3)
    for _ in range(2):
        recorded = await records.create(job, reply_to="client", call="call")
        assert recorded._replace(entered=None) == Recorded(state=JobState.QUEUED, attempt=0, closed=False)
    return job


tokens_of_starts = count()


START: dict[str, Any] = {
    "lease_s": 60,
    "resumable": True,
    "alone": True,
    "reply_to": "from-the-message",
    "model_identity": "model-a",
}


async def start(records: JobRecords, job: Job, worker: str = "w-1", **options: Any) -> Started:
    """Begin an attempt, twice with one token."""
    arguments: dict[str, Any] = {
        **START,
        "token": f"{worker}:{next(tokens_of_starts)}",
        "worker_id": worker,
        **options,
    }
    started = await records.start(job, **arguments)
    again = await records.start(job, **arguments)
    if started.status not in {StartStatus.BUSY, StartStatus.DONE, StartStatus.SUSPECT}:
        assert (again.status, again.fence, again.charged) == (
            started.status,
            started.fence,
            started.charged,
        )
        assert (again.tokens, again.restart, again.model_identity) == (
            started.tokens,
            started.restart,
            started.model_identity,
        )
    return started


async def restart(
    records: JobRecords, job: Job, started: Started, reason: RestartReason, model_identity: str = "model-a"
) -> Fence:
    """Begin the answer again, twice; return the fence from then on."""
    arguments: dict[str, Any] = {
        "fence": started.fence,
        "worker_id": "w-2",
        "model_identity": model_identity,
        "reason": reason,
        "tokens_wasted": started.tokens,
    }
    assert await records.restart(job.id, **arguments) is WriteStatus.OK
    assert await records.restart(job.id, **arguments) is WriteStatus.OK
    return started.fence.restarted()


async def append(
    records: JobRecords, job: Job, fence: Fence, offset: int, *tokens: int, lease_s: float = 60
) -> WriteStatus:
    chunks = (TokenChunk(token_ids=tokens, text="x" * len(tokens)),) if tokens else ()
    pending = PendingTokens(offset, chunks)
    written = await records.append(job.id, fence=fence, lease_s=lease_s, pending=pending)
    assert await records.append(job.id, fence=fence, lease_s=lease_s, pending=pending) is written
    return written


async def finish(records: JobRecords, job: Job, fence: Fence, offset: int = 0, *tokens: int) -> WriteStatus:
    result = Result(job_id=job.id, state=JobState.SUCCEEDED, worker_id=fence.token)
    pending = PendingTokens(offset, (TokenChunk(token_ids=tokens),) if tokens else ())
    written = await records.finish(job, result, fence=fence, pending=pending, reply_to="client")
    assert await records.finish(job, result, fence=fence, pending=pending, reply_to="client") is written
    return written


async def release(
    records: JobRecords, job: Job, fence: Fence, offset: int = 0, *tokens: int, refund: bool = False
) -> WriteStatus:
    pending = PendingTokens(offset, (TokenChunk(token_ids=tokens),) if tokens else ())
    entry = QueuedEntry(at=datetime.now(UTC), attempt=fence.attempt, reason="handed_over")
    arguments: dict[str, Any] = {"fence": fence, "pending": pending, "entry": entry, "refund": refund}
    written = await records.release(job.id, **arguments)
    assert await records.release(job.id, **arguments) is written
    return written


async def cancel(records: JobRecords, job: Job) -> JobState:
    error = Failure(code=FailureCode.CANCELLED, message="no more")
    result = Result(job_id=job.id, state=JobState.CANCELLED, error=error)
    state = await records.cancel(job.id, result)
    assert state is not None
    assert await records.cancel(job.id, result) is state
    return state


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
    lines: Any = await store.xrange(reply_key("client"))
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
    assert joined._replace(entered=None) == Recorded(state=JobState.SUCCEEDED, attempt=1, closed=False)
    assert (await records.get(job.id), await journal_of(store, job)) == before


# Cancelling, expiring, discarding


async def test_a_queued_job_that_is_cancelled_ends_at_once(
    records: JobRecords, job: Job, store: aioredis.Redis
) -> None:
    assert await cancel(records, job) is JobState.CANCELLED
    assert kinds_of(await journal_of(store, job)) == ["queued", "finished"]
    assert (await start(records, job)).status is StartStatus.DONE


async def test_a_running_job_is_marked_and_its_worker_told_with_its_next_write(
    records: JobRecords, job: Job
) -> None:
    started = await start(records, job)
    assert await cancel(records, job) is JobState.RUNNING
    assert (await records.get(job.id)).cancel_requested
    assert await append(records, job, started.fence, 0, 1) is WriteStatus.CANCEL
    assert await release(records, job, started.fence, 1) is WriteStatus.CANCEL
    assert (await start(records, job)).status is StartStatus.CANCELLED


async def until_stalled(records: JobRecords, job: Job) -> None:
    async def stalled() -> bool:
        return await records.standing(job.id) is Standing.STALLED

    await eventually(stalled)


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


# A Redis that lost something


async def test_the_message_is_the_record_where_there_is_none(records: JobRecords, pool: str) -> None:
    job = Job(pool=pool, body=chat(), priority=7)
    started = await start(records, job, reply_to="somebody")
    assert (started.status, started.fence.attempt, started.reply_to) == (StartStatus.STARTED, 1, "somebody")
    record = await records.get(job.id)
    assert (record.pool, record.priority, record.reply_to) == (pool, 7, "somebody")


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


async def restore(records: JobRecords, job: Job, fence: Fence, *tokens: int) -> bool:
    return await records.restore(
        job,
        fence=fence,
        charged=1,
        worker_id="w-1",
        lease_s=60,
        started_at=datetime.now(UTC),
        chunks=(TokenChunk(token_ids=tokens),),
        reply_to="client",
    )


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
