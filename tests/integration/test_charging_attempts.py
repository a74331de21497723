"""Which attempts count towards a job's limit, when its workers die without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest
from tests.integration.conftest import PATIENCE_S, StartWorker, slow_chat, until_tokens

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.producer.background import background
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.journal import TokenChunk
from inferfleet.wire.redis.attempts import DEATHS_PER_ATTEMPT, Started, StartStatus
from inferfleet.wire.redis.connection import command_pipeline, open_redis
from inferfleet.wire.redis.journal_lines import PendingTokens
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.tasks import TaskGroup

pytestmark = pytest.mark.matrix


@pytest.fixture
async def records(services: Services) -> AsyncIterator[JobRecords]:
    async with open_redis(services.redis_url) as client:
        pipeline = command_pipeline(client, patience_s=0)
        async with background(pipeline.run()):
            yield JobRecords(pipeline=pipeline, result_ttl_s=60, queued_ttl_s=60)


def a_job(max_attempts: int) -> Job:
    return Job(body={"messages": [{"role": "user", "content": "hi"}]}, max_attempts=max_attempts)


async def start_after_a_death(
    records: JobRecords, job: Job, *, resumable: bool = True, model_identity: str = "model-a"
) -> Started:
    """Start on a worker that did not run it before and whose predecessor's lease is over."""
    started = await records.start(
        job,
        token=uuid4().hex,
        worker_id="the same worker, started again: its lease does not keep it out",
        lease_s=1,
        resumable=resumable,
        alone=True,
        reply_to="",
        model_identity=model_identity,
    )
    if started.restart is not None:
        assert await records.restart(
            job.id,
            fence=started.fence,
            worker_id="w",
            model_identity=model_identity,
            reason=started.restart,
            tokens_wasted=started.tokens,
        )
        return replace(started, fence=started.fence.restarted(), tokens=0)
    return started


async def bring_on(records: JobRecords, job: Job, started: Started, *, tokens: int = 3) -> None:
    chunk = TokenChunk(token_ids=tuple(range(tokens)), text="x" * tokens)
    pending = PendingTokens(started.tokens, (chunk,))
    assert await records.append(job.id, fence=started.fence, lease_s=1, pending=pending) == "ok"


async def test_a_job_that_never_gets_on_is_exhausted_after_its_attempts(records: JobRecords) -> None:
    job = a_job(3)
    verdicts = [(await start_after_a_death(records, job)).status for _ in range(4)]
    assert verdicts == [StartStatus.STARTED] * 3 + [StartStatus.EXHAUSTED]


async def test_a_death_that_had_brought_the_answer_on_does_not_count(records: JobRecords) -> None:
    job = a_job(2)
    for _ in range(5):
        started = await start_after_a_death(records, job)
        assert (started.status, started.charged) == (StartStatus.STARTED, 1)
        await bring_on(records, job, started)


async def test_tokens_that_have_to_be_generated_again_are_no_progress(records: JobRecords) -> None:
    job = a_job(2)
    for _ in range(2):
        started = await start_after_a_death(records, job, resumable=False)
        assert started.status is StartStatus.STARTED
        await bring_on(records, job, started)
    assert (await start_after_a_death(records, job, resumable=False)).status is StartStatus.EXHAUSTED


async def test_tokens_of_another_model_are_no_progress(records: JobRecords) -> None:
    job = a_job(2)
    for model in ("model-a", "model-b"):
        started = await start_after_a_death(records, job, model_identity=model)
        assert started.status is StartStatus.STARTED
        await bring_on(records, job, started)
    exhausted = await start_after_a_death(records, job, model_identity="model-a")
    assert exhausted.status is StartStatus.EXHAUSTED


async def test_progress_counts_from_where_the_answer_began_again(records: JobRecords) -> None:
    job = a_job(2)
    await bring_on(records, job, await start_after_a_death(records, job), tokens=9)
    for charged in (2, 2, 2):
        started = await start_after_a_death(records, job, model_identity="model-b")
        assert (started.status, started.charged) == (StartStatus.STARTED, charged)
        await bring_on(records, job, started, tokens=2)


async def test_even_with_progress_a_job_may_not_kill_for_ever(records: JobRecords) -> None:
    job = a_job(1)
    deaths = 0
    while (started := await start_after_a_death(records, job)).status is StartStatus.STARTED:
        await bring_on(records, job, started)
        deaths += 1
    assert started.status is StartStatus.EXHAUSTED
    assert deaths == DEATHS_PER_ATTEMPT


async def test_a_suspect_that_waits_for_another_one_moves_to_a_worker_without(
    records: JobRecords, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    endless = slow_chat(tokens=10_000, step_s=0.05)
    suspects = [await fleet.submit(endless, pool=pool, max_attempts=5) for _ in range(3)]
    for job in suspects:
        for _ in range(2):
            await start_after_a_death(records, job)
    async with asyncio.timeout(PATIENCE_S), TaskGroup() as group:
        begun = [group.create_task(until_tokens(fleet, job)) for job in suspects]
        # The first worker takes the messages of all of them, and may run one.
        await start_worker(lease_s=1)
        await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(2):
            await start_worker(lease_s=1)
    assert [(await fleet.get(job)).state for job in suspects] == [JobState.RUNNING] * 3
