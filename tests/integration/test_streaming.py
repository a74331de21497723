"""Streams: every token once and in order, from the beginning or from where a reader stopped."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    StartWorker,
    answer_to,
    assert_whole,
    chat,
    journal_of,
    kinds_of,
    read_all,
    slow_chat,
    text_of,
    until_tokens,
)

from inferfleet.local.services.free_port import free_port
from inferfleet.producer import Fleet, JournalLine
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.journal import TokensEntry

pytestmark = pytest.mark.store


async def test_tokens_arrive_while_the_job_still_runs(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(slow_chat(tokens=40, step_s=0.02), pool=pool, stream=True)
    states: list[JobState] = []
    entries = []
    async with asyncio.timeout(PATIENCE_S):
        async for line in fleet.stream(job):
            entries.append(line.entry)
            if isinstance(line.entry, TokensEntry):
                states.append((await fleet.get(job)).state)
    assert len(states) > 5
    assert set(states[:5]) == {JobState.RUNNING}
    assert_whole(entries)
    assert text_of(entries) == answer_to(job)


async def test_a_job_that_is_not_streamed_writes_its_tokens_in_large_portions(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(journal_flush_s=0.4)
    job = await fleet.submit(slow_chat(tokens=50, step_s=0.02), pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    entries = await journal_of(store, job)
    assert_whole(entries)
    assert 2 <= [entry.kind for entry in entries].count("tokens") <= 4


async def test_a_reader_that_was_cut_off_goes_on_behind_the_last_line_it_saw(
    fleet: Fleet, connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    """At every line of the journal: nothing is missing and nothing comes twice."""
    await start_worker()
    job = await fleet.submit(slow_chat(tokens=30, step_s=0.01), pool=pool, stream=True)
    async with asyncio.timeout(PATIENCE_S):
        lines = [line async for line in fleet.stream(job)]
    async with connect() as other:
        for position, line in enumerate(lines):
            rest = [again async for again in other.stream(job, after=line.id)]
            assert rest == lines[position + 1 :]


async def test_a_reader_that_comes_back_while_tokens_flow_misses_none(
    fleet: Fleet, connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(slow_chat(tokens=60, step_s=0.01), pool=pool, stream=True)
    seen: list[JournalLine] = []
    async with asyncio.timeout(PATIENCE_S):
        while not seen or seen[-1].entry.kind != "finished":
            async with connect() as client:
                after = {"after": seen[-1].id} if seen else {}
                async with aclosing(client.stream(job, **after)) as lines:
                    async for line in lines:
                        seen.append(line)
                        if line.entry.kind == "tokens":
                            break
    entries = [line.entry for line in seen]
    assert_whole(entries)
    assert text_of(entries) == answer_to(job)


async def test_many_readers_of_many_jobs_each_see_their_own(
    fleet: Fleet, connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(max_running=32)
    jobs = await fleet.submit_many(
        [slow_chat(f"{number}", tokens=20, step_s=0.01) for number in range(30)], pool=pool, stream=True
    )
    async with connect() as other:
        read = await asyncio.gather(
            *(read_all(client.stream(job)) for client in (fleet, other) for job in (*jobs, *jobs))
        )
    for job, entries in zip((jobs * 4), read, strict=True):
        assert_whole(entries)
        assert text_of(entries) == answer_to(job)


async def test_a_stream_that_begins_before_the_job_runs_shows_it_all(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    reading = asyncio.create_task(read_all(fleet.stream(job)))
    await fleet.get(job)
    await start_worker()
    assert kinds_of(await reading) == ["queued", "running", "tokens", "finished"]


async def test_something_that_is_no_id_of_a_line_is_an_error(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hello", pool=pool)
    with pytest.raises(ValueError, match="after: 'yesterday' is not the id of a journal line"):
        await anext(fleet.stream(job, after="yesterday"))


async def test_a_line_that_nobody_can_read_is_an_error_for_its_reader_and_nobody_else(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    strange, good = await fleet.submit_many(["strange", "good"], pool=pool)
    begun = asyncio.Event()

    async def read_strange() -> None:
        async for _ in fleet.stream(strange):
            begun.set()

    readers = [asyncio.create_task(read_strange()), asyncio.create_task(read_all(fleet.stream(good)))]
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    await store.xadd(f"inferfleet:job:{{{strange.id}}}:journal", {"entry": '{"kind":"transcended"}'})
    with pytest.raises(ValueError, match="transcended"):
        await asyncio.wait_for(readers[0], PATIENCE_S)
    await start_worker()
    entries = await readers[1]
    assert entries is not None
    assert text_of(entries) == answer_to(good)


# Cancelling


async def test_a_queued_job_that_is_cancelled_never_runs(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    cancelled, other = await fleet.submit_many(["no", "yes"], pool=pool)
    assert await fleet.cancel(cancelled) is JobState.CANCELLED
    result = await fleet.wait(cancelled, timeout_s=PATIENCE_S)
    assert (result.state, result.attempts, result.text) == (JobState.CANCELLED, 0, "")
    worker = await start_worker()
    await fleet.wait(other, timeout_s=PATIENCE_S)
    await worker.stop()
    assert kinds_of(await journal_of(store, cancelled)) == ["queued", "finished"]
    assert await fleet.cancel(cancelled) is JobState.CANCELLED


async def test_a_running_job_that_is_cancelled_stops_and_keeps_what_it_has(
    fleet: Fleet, connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    worker = await start_worker(max_running=1)
    job = await fleet.submit(slow_chat(tokens=1000, step_s=0.01), pool=pool, stream=True)
    behind = await fleet.submit("behind it", pool=pool)
    await until_tokens(fleet, job, 5)
    async with connect() as somebody:
        assert await somebody.cancel(job) is JobState.RUNNING
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.CANCELLED
    assert result.error is not None
    assert result.error.code == "cancelled"
    entries = await journal_of(store, job)
    assert_whole(entries)
    assert answer_to(job).startswith(text_of(entries))
    assert 5 <= result.usage.completion_tokens < 1000
    assert (await fleet.wait(behind, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    assert worker.engine.stats().running == 0


async def test_a_running_job_is_cancelled_also_by_a_client_that_cannot_reach_the_broker(
    fleet: Fleet, connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    """The mark in the record is seen at the next write of the journal."""
    await start_worker(journal_flush_s=0.1)
    job = await fleet.submit(slow_chat(tokens=1000, step_s=0.01), pool=pool)
    await until_tokens(fleet, job)
    async with connect(amqp_url=f"amqp://guest:guest@127.0.0.1:{free_port()}/") as cut_off:
        assert await cut_off.cancel(job) is JobState.RUNNING
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.CANCELLED


async def test_a_job_that_waits_for_its_next_attempt_can_be_cancelled(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(retry_base_s=60)
    body = chat("half of it", max_tokens=30, simulated={"fail": "engine_error", "after_tokens": 20})
    job = await fleet.submit(body, pool=pool)
    async with asyncio.timeout(PATIENCE_S):
        async for line in fleet.stream(job):
            if line.entry.kind == "queued" and line.entry.reason == "retry":
                break
    assert await fleet.cancel(job) is JobState.CANCELLED
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.attempts) == (JobState.CANCELLED, 1)
    assert result.usage.completion_tokens == 20


async def test_a_job_that_has_finished_stays_as_it_is(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit("hello", pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert await fleet.cancel(job) is JobState.SUCCEEDED
    assert await fleet.wait(job) == result


async def test_cancelling_a_hundred_jobs_in_the_midst_of_their_work_leaves_none_undecided(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    worker = await start_worker(max_running=16)
    jobs = await fleet.submit_many(
        [slow_chat(str(number), tokens=20, step_s=0.002) for number in range(100)], pool=pool
    )
    await until_tokens(fleet, jobs[0])
    await asyncio.gather(*(fleet.cancel(job) for job in jobs))
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert {result.state for result in results} <= {JobState.CANCELLED, JobState.SUCCEEDED}
    for job, result in zip(jobs, results, strict=True):
        entries = await journal_of(store, job)
        assert_whole(entries)
        if result.state is JobState.SUCCEEDED:
            assert result.text == text_of(entries) == answer_to(job)
    await worker.stop()
    assert worker.engine.stats().running == 0


async def test_a_job_object_may_be_given_by_its_id(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job: Job = await fleet.submit("hello", pool=pool)
    assert (await fleet.wait(job.id, timeout_s=PATIENCE_S)) == await fleet.wait(job)
    assert (await fleet.get(job.id)) == await fleet.get(job)
