"""Waiting: for one job or for ten thousand, one's own or another client's."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    StartWorker,
    answer_to,
    chat,
    eventually,
    kinds_of,
    slow_chat,
    until_running,
)

from inferfleet.agents import AgentRuns
from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet, JobFilter, SyncFleet
from inferfleet.schemas import Job, JobState, Result
from inferfleet.schemas.errors import (
    InvalidJobError,
    JobFailedError,
    JobNotFoundError,
    ServiceUnreachableError,
    WaitTimeoutError,
)
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords

pytestmark = pytest.mark.store

NEVER_S = 3600.0
"""An interval of looking at the records that no test lives to see: results must come by themselves."""


async def test_a_result_says_what_was_answered_and_how_long_it_took(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(worker_id="w-1")
    job = await fleet.submit(slow_chat(tokens=10, step_s=0.02), pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.job_id, result.state, result.error) == (job.id, JobState.SUCCEEDED, None)
    assert (result.text, result.worker_id, result.attempts) == (answer_to(job), "w-1", 1)
    assert result.response is not None
    assert result.response["id"] == f"chatcmpl-{job.id}"
    assert result.usage.completion_tokens == 10
    timings = result.timings
    assert timings is not None
    assert timings.time_to_first_token_s is not None
    assert 0.02 <= timings.time_to_first_token_s < timings.generation_s <= timings.total_s
    assert timings.generation_s >= 0.2
    assert timings.queue_wait_s == pytest.approx(timings.total_s - timings.generation_s)
    record = await fleet.get(job)
    assert (record.state, record.tokens, record.result) == (JobState.SUCCEEDED, 10, result)


async def test_a_job_that_failed_raises_when_its_result_is_asked_for(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(chat(simulated={"fail": "prompt_too_long"}), pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    with pytest.raises(JobFailedError, match=f"job {job.id} failed: prompt_too_long") as caught:
        result.raise_for_state()
    assert (caught.value.state, caught.value.code) == ("failed", "prompt_too_long")


async def test_results_come_in_the_order_of_the_jobs(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(max_running=4)
    jobs = await fleet.submit_many(
        [slow_chat(str(number), tokens=20 - number, step_s=0.001) for number in range(20)], pool=pool
    )
    results = await fleet.wait_many(reversed(jobs), timeout_s=PATIENCE_S)  # type: ignore[arg-type]
    assert [result.job_id for result in results] == [job.id for job in reversed(jobs)]
    assert [result.text for result in results] == [answer_to(job) for job in reversed(jobs)]


async def test_many_may_wait_for_one_job_at_the_same_time(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    waiting = [asyncio.create_task(fleet.wait(job)) for _ in range(20)]
    await fleet.get(job)
    waiting[0].cancel()
    await start_worker()
    results = await asyncio.wait_for(asyncio.gather(*waiting[1:]), PATIENCE_S)
    assert len({result.model_dump_json() for result in results}) == 1
    assert await fleet.wait(job.id) == results[0]


async def test_patience_that_ends_does_not_touch_the_job(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    with pytest.raises(WaitTimeoutError, match=r"did not finish within 0.01 s; it continues"):
        await fleet.wait(job, timeout_s=0.01)
    with pytest.raises(WaitTimeoutError, match="not all jobs finished"):
        await fleet.wait_many([job], timeout_s=0.01)
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


async def test_one_unknown_job_among_many_is_an_error(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hello", pool=pool)
    with pytest.raises(JobNotFoundError):
        await asyncio.wait_for(fleet.wait_many([job, new_job_id()]), PATIENCE_S)


async def test_another_client_may_wait_too(
    connect: Connect, start_worker: StartWorker, pool: str, fleet: Fleet
) -> None:
    async with connect(state_check_interval_s=NEVER_S) as other:
        early = await fleet.submit(slow_chat(tokens=10, step_s=0.02), pool=pool)
        waiting = asyncio.create_task(other.wait(early))
        await start_worker()
        assert (await asyncio.wait_for(waiting, PATIENCE_S)).text == answer_to(early)
        assert await other.wait(early, timeout_s=PATIENCE_S) == await fleet.wait(early)


async def test_a_client_that_comes_back_under_its_name_gets_its_results(
    connect: Connect, start_worker: StartWorker, pool: str, fleet: Fleet
) -> None:
    """A web server that was restarted: same name, other process, jobs still under way."""
    async with connect(client_id=f"{pool}-web") as before:
        jobs = await before.submit_many(["one", "two"], pool=pool)
    async with connect(client_id=f"{pool}-web", state_check_interval_s=NEVER_S) as after:
        waiting = asyncio.create_task(after.wait_many(jobs))
        await start_worker()
        assert [r.text for r in await asyncio.wait_for(waiting, PATIENCE_S)] == [answer_to(j) for j in jobs]


async def test_a_lost_reply_is_found_by_a_look_at_the_record(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """The worker died between its commit and the line that tells of it."""
    async with connect(client_id=f"{pool}-c", state_check_interval_s=0.05) as fleet:
        await fleet.declare_pool(pool)
        job = await fleet.submit("hello", pool=pool)
        waiting = asyncio.create_task(fleet.wait(job))
        await fleet.get(job)
        result = Result(job_id=job.id, state=JobState.SUCCEEDED)
        await store.set(f"inferfleet:job:{{{job.id}}}:result", result.model_dump_json())
        assert await asyncio.wait_for(waiting, PATIENCE_S) == result


async def test_a_result_that_cannot_be_read_is_an_error_for_whoever_waits_for_it_and_nobody_else(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """A newer worker may say what an older client does not know."""
    async with connect(client_id=f"{pool}-c", state_check_interval_s=0.05) as fleet:
        await fleet.declare_pool(pool)
        strange, good = await fleet.submit_many(["strange", "good"], pool=pool)
        waiting = asyncio.create_task(fleet.wait(strange))
        await fleet.get(strange)
        await store.set(f"inferfleet:job:{{{strange.id}}}:result", '{"state":"transcended"}')
        with pytest.raises(ValueError, match="state"):
            await asyncio.wait_for(waiting, PATIENCE_S)
        await start_worker()
        assert (await fleet.wait(good, timeout_s=PATIENCE_S)).text == answer_to(good)


async def test_closing_a_client_ends_its_waits(connect: Connect, fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hello", pool=pool)
    async with connect() as leaving, connect(client_id=f"{pool}-c") as owner:
        own = await owner.submit("mine", pool=pool)
        waits = [
            asyncio.create_task(leaving.wait(job)),
            asyncio.create_task(owner.wait(own)),
            asyncio.create_task(_last(owner.stream(own))),
        ]
        await asyncio.gather(leaving.get(job), owner.get(own))
    for wait in waits:
        with pytest.raises(ServiceUnreachableError, match="closed"):
            await asyncio.wait_for(wait, PATIENCE_S)


async def _last(lines: Any) -> Any:
    return [line async for line in lines][-1]


# Ten thousand


@pytest.mark.usefixtures("real_redis", "one_redis")
async def test_waiting_for_ten_thousand_jobs_takes_one_blocked_read(
    connect: Connect, store: aioredis.Redis, pool: str
) -> None:
    """The jobs are recorded and then cancelled, which ends them without a broker or a worker."""
    others = {client["id"] for client in await store.client_list()}

    async def opened() -> list[dict[str, str]]:
        return [client for client in await store.client_list() if client["id"] not in others]

    jobs = [Job(pool=pool, body=chat(str(number))) for number in range(10_000)]
    async with connect(client_id=f"{pool}-c", state_check_interval_s=NEVER_S) as fleet:
        pipeline = CommandPipeline(store, patience_s=0)
        records = JobRecords(pipeline=pipeline, result_ttl_s=60, queued_ttl_s=60)
        sending = asyncio.create_task(pipeline.run())
        await asyncio.gather(*(records.create(job, reply_to=f"{pool}-c", call="call") for job in jobs))
        waiting = asyncio.create_task(fleet.wait_many(jobs))
        await eventually(lambda: _has_blocked_once(opened))
        at_ten_thousand = len(await opened())
        ended = {
            job.id: Result(job_id=job.id, state=JobState.CANCELLED, worker_id=str(number))
            for number, job in enumerate(jobs)
        }
        await asyncio.gather(*(records.cancel(job_id, result) for job_id, result in ended.items()))
        results = await asyncio.wait_for(waiting, PATIENCE_S)
        assert results == [ended[job.id] for job in jobs]
        assert len(await opened()) <= at_ten_thousand <= 3
        sending.cancel()
        await asyncio.wait([sending])


async def _has_blocked_once(opened: Callable[[], Any]) -> bool:
    blocked = [client for client in await opened() if client["cmd"] == "xread" and "b" in client["flags"]]
    assert len(blocked) <= 1
    return len(blocked) == 1


# The blocking facade


@pytest.fixture
def settings(producer_settings: Callable[..., ProducerSettings]) -> ProducerSettings:
    return producer_settings()


async def test_the_blocking_client_does_what_the_other_does(
    fleet: Fleet, start_worker: StartWorker, settings: ProducerSettings, pool: str
) -> None:
    await start_worker()

    def work() -> None:
        with SyncFleet.connect(settings) as client:
            job = client.submit("hello", pool=pool, stream=True)
            assert kinds_of([line.entry for line in client.stream(job)]) == [
                *("queued", "running", "tokens", "finished")
            ]
            assert client.wait(job, timeout_s=PATIENCE_S).text == answer_to(job)
            assert client.get(job).state is JobState.SUCCEEDED
            jobs = client.submit_many(["one", "two"], pool=pool)
            assert [r.text for r in client.wait_many(jobs, timeout_s=PATIENCE_S)] == list(
                map(answer_to, jobs)
            )
            slow = client.submit(slow_chat(tokens=500, step_s=0.02), pool=pool)
            with pytest.raises(WaitTimeoutError):
                client.wait(slow, timeout_s=0.01)
            assert client.cancel(slow) in {JobState.RUNNING, JobState.CANCELLED}
            assert client.wait(slow, timeout_s=PATIENCE_S).state is JobState.CANCELLED
            with pytest.raises(InvalidJobError):
                client.submit("", pool=pool)
            with pytest.raises(JobNotFoundError):
                client.get(new_job_id())
            with pytest.raises(JobNotFoundError):
                next(client.stream(new_job_id()))

    await asyncio.wait_for(asyncio.to_thread(work), PATIENCE_S)


async def test_the_blocking_client_serves_many_threads(
    fleet: Fleet, start_worker: StartWorker, settings: ProducerSettings, pool: str
) -> None:
    await start_worker()

    def work() -> int:
        together = threading.Barrier(8)

        def one(number: int) -> bool:
            together.wait()
            for round_ in range(5):
                job = client.submit(f"{number} in round {round_}", pool=pool)
                if client.wait(job, timeout_s=PATIENCE_S).text != answer_to(job):
                    return False
            return True

        with SyncFleet.connect(settings) as client, ThreadPoolExecutor(8) as threads:
            return list(threads.map(one, range(8))).count(True)

    assert await asyncio.wait_for(asyncio.to_thread(work), PATIENCE_S) == 8


async def test_a_blocking_stream_that_is_left_early_lets_go(
    fleet: Fleet, start_worker: StartWorker, settings: ProducerSettings, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(slow_chat(tokens=500, step_s=0.02), pool=pool, stream=True)
    await until_running(fleet, job)

    def work() -> None:
        with SyncFleet.connect(settings) as client:
            for line in client.stream(job):
                if line.entry.kind == "tokens":
                    break
            client.cancel(job)
            assert client.wait(job, timeout_s=PATIENCE_S).state is JobState.CANCELLED

    await asyncio.wait_for(asyncio.to_thread(work), PATIENCE_S)


# Looking at the records


@pytest.mark.parametrize("waits", [False, True])
async def test_a_client_that_closes_while_rabbitmq_is_frozen_says_nothing_of_waiting_jobs(
    connect: Connect, services: Services, pool: str, caplog: pytest.LogCaptureFixture, waits: bool
) -> None:
    async with Proxy(services.amqp_url) as link:
        async with connect(amqp_url=link.url, state_check_interval_s=0.01) as fleet:
            await fleet.declare_pool(pool)
            job = await fleet.submit("hello", pool=pool)
            waiting = asyncio.ensure_future(fleet.wait(job)) if waits else None
            link.hold(Direction.TO_CLIENT)
        # RabbitMQ has answered the client, which closed.
        await link.until_held(Direction.TO_CLIENT)
        if waiting is not None:
            with pytest.raises(ServiceUnreachableError, match="was closed"):
                await waiting
    assert "waiting jobs" not in caplog.text


@pytest.mark.usefixtures("one_redis")
async def test_a_client_of_whom_nobody_waits_says_nothing_of_waiting_jobs_without_redis(
    connect: Connect, services: Services, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Proxy(services.redis_url) as link,
        connect(redis_url=link.url, state_check_interval_s=0.01) as fleet,
    ):
        job = new_job_id()
        link.hold(Direction.TO_CLIENT)
        for _ in range(2):
            with pytest.raises(ServiceUnreachableError):
                await fleet.get(job)
        assert "waiting jobs" not in caplog.text


# What callers without a type checker pass


@pytest.mark.parametrize("limit", [math.nan, "5", timedelta(seconds=5), True])
async def test_a_wait_for_something_that_is_no_number_of_seconds_is_refused_at_once(
    fleet: Fleet, pool: str, limit: Any
) -> None:
    """A timer at a time that is no number would keep all timers of the event loop from ringing."""
    job = await fleet.submit("hello", pool=pool)
    for waiting in (
        fleet.wait(job, timeout_s=limit),
        fleet.wait_many([job], timeout_s=limit),
        anext(fleet.as_completed([job], timeout_s=limit)),
        fleet.drain("w-1", timeout_s=limit),
        AgentRuns(fleet).result("r-1", timeout_s=limit),
    ):
        with pytest.raises(InvalidJobError, match="timeout_s: must be a number of seconds, or None"):
            await waiting
    with pytest.raises(InvalidJobError, match="wait_timeout_s: must be a number of seconds"):
        await fleet.run("hello", pool=pool, wait_timeout_s=limit)
    assert [record.id async for record in fleet.list_jobs(JobFilter(pool=pool))] == [job.id]


async def test_a_wait_may_be_without_a_limit_or_with_one_that_is_past(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hello", pool=pool)
    for past in (0, -1, -math.inf):
        with pytest.raises(WaitTimeoutError):
            await fleet.wait(job, timeout_s=past)
    for long in (math.inf, 10**400, None):
        waiting = asyncio.create_task(fleet.wait(job, timeout_s=long))
        assert not (await asyncio.wait([waiting], timeout=0.01))[0]
        waiting.cancel()


async def test_what_is_no_job_is_named_by_its_type_and_never_quoted(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("a secret", pool=pool)
    record = await fleet.get(UUID(job.id))  # type: ignore[arg-type]
    no_job: Any
    calls = (fleet.get, fleet.wait, fleet.cancel, fleet.position, fleet.timeline, fleet.tenant_of)
    for no_job, name in ((None, "null"), (record, "a JobRecord"), ([job], "a list"), (b"x", "a bytes")):
        for call in calls:
            with pytest.raises(InvalidJobError, match=f"^job: must be a Job or the id of one, not {name}$"):
                await call(no_job)
        for several in (fleet.wait_many, fleet.get_many):
            with pytest.raises(InvalidJobError, match=f"^job: must be .*, not {name}$"):
                await several([no_job])


async def test_one_job_or_one_prompt_is_no_list(fleet: Fleet, settings: ProducerSettings, pool: str) -> None:
    """Each character would be a prompt, or the id of a job."""
    job = await fleet.submit("hello", pool=pool)
    one: Any
    for one, name in ((job.id, "a string"), (job, "a Job")):
        for call in (fleet.wait_many, fleet.get_many):
            with pytest.raises(
                InvalidJobError, match=f"^jobs: must be a list, not {name}; put it into a list"
            ):
                await call(one)
        with pytest.raises(InvalidJobError, match="jobs: must be a list"):
            await anext(fleet.as_completed(one))
    for one in ("hello", b"hello", job, chat("hello")):
        with pytest.raises(InvalidJobError, match="work: must be a list, not "):
            await fleet.submit_many(one, pool=pool)

    def blocking() -> None:
        with SyncFleet.connect(settings) as client:
            with pytest.raises(InvalidJobError, match="jobs: must be a list"):
                client.get_many(job.id)
            with pytest.raises(InvalidJobError, match="jobs: must be a list"):
                next(client.as_completed(job.id))
            with pytest.raises(InvalidJobError, match="work: must be a list"):
                client.submit_many("hello", pool=pool)

    await asyncio.to_thread(blocking)
    assert [record.id async for record in fleet.list_jobs(JobFilter(pool=pool))] == [job.id]
