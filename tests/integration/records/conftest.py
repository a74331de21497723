"""Changes of the record of a job. Each is made twice, as it is when the first answer got lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from tests.integration.conftest import chat, eventually
from tests.stores import running_pipeline

from inferfleet.local.services import Services
from inferfleet.schemas import Failure, FailureCode, Job, JobState, Result
from inferfleet.schemas.journal import (
    QueuedEntry,
    RestartReason,
    TokenChunk,
)
from inferfleet.wire.redis.attempts import Fence, Started, StartStatus, WriteStatus
from inferfleet.wire.redis.job_reading import Standing
from inferfleet.wire.redis.journal_lines import PendingTokens
from inferfleet.wire.redis.records import JobRecords, Recorded

TTL_S = 300


@pytest.fixture
async def records(services: Services) -> AsyncIterator[JobRecords]:
    async with running_pipeline(services.redis_url, patience_s=0) as pipeline:
        yield JobRecords(pipeline=pipeline, result_ttl_s=TTL_S, queued_ttl_s=TTL_S)


@pytest.fixture
async def job(records: JobRecords, pool: str) -> Job:
    """A job that was accepted; its client is called ``client``."""
    job = Job(pool=pool, body=chat(), max_attempts=3)
    # Sent twice, the second answers as the first.
    for _ in range(2):
        recorded = await records.create(job, reply_to="client", call="call")
        assert recorded._replace(entered=None) == Recorded(
            state=JobState.QUEUED, attempt=0, closed=False, pool=pool, made=True, priority=job.priority
        )
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
    assert (again.status, again.charged) == (started.status, started.charged)
    if started.status is StartStatus.BUSY:
        # Some of it is over by then.
        assert started.busy_s - 1 < again.busy_s <= started.busy_s
    if started.status not in {StartStatus.BUSY, StartStatus.DONE, StartStatus.SUSPECT}:
        assert again.fence == started.fence
        assert (again.tokens, again.restart, again.model_identity, again.first_entered_ms) == (
            started.tokens,
            started.restart,
            started.model_identity,
            started.first_entered_ms,
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
    records: JobRecords,
    job: Job,
    fence: Fence,
    offset: int = 0,
    *tokens: int,
    refund: bool = False,
    pause_s: float = 0.0,
) -> WriteStatus:
    pending = PendingTokens(offset, (TokenChunk(token_ids=tokens),) if tokens else ())
    entry = QueuedEntry(at=datetime.now(UTC), attempt=fence.attempt, reason="handed_over")
    arguments: dict[str, Any] = {
        "fence": fence,
        "pending": pending,
        "entry": entry,
        "refund": refund,
        "pause_s": pause_s,
    }
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


async def until_stalled(records: JobRecords, job: Job) -> None:
    async def stalled() -> bool:
        return await records.standing(job.id) is Standing.STALLED

    await eventually(stalled)


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
