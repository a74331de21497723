"""Jobs that may not start before their time, whoever dies meanwhile."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import aiormq.exceptions
import httpx2
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    RunCommand,
    StartGateway,
    StartWorker,
    answer_to,
    chat,
    eventually,
    journal_of,
    kinds_of,
)
from tests.integration.test_lost_messages import SWEEP_S, open_in, was_republished
from tests.integration.test_pool_pause import until_waiting

from inferfleet.producer import Fleet
from inferfleet.producer.job_listing import JobFilter
from inferfleet.producer.positions import WaitReason
from inferfleet.producer.timeline import timeline
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import InvalidJobError, UnknownPoolError
from inferfleet.schemas.message import message_body
from inferfleet.schemas.names import DELAYS_S, delay_queue, job_key, journal_key, open_key, request_key
from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.wire.redis.records import JobRecords
from inferfleet.worker import claim

HOUR_S = 3600.0

pytestmark = pytest.mark.matrix


async def now(store: aioredis.Redis) -> datetime:
    """The time by Redis' clock."""
    seconds, microseconds = await store.time()
    return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(microseconds))


def delay_queues() -> list[str]:
    return [delay_queue(ServiceSettings().queue_type, seconds) for seconds in DELAYS_S]


async def delayed(foreign: ForeignClient) -> int:
    """Count the messages that wait for their time."""
    return sum([await foreign.waiting(queue) for queue in delay_queues()])


async def purge_delayed(foreign: ForeignClient) -> int:
    """Lose the messages that wait for their time. Return how many there were."""
    purged = [await foreign.channel.queue_purge(queue) for queue in delay_queues()]
    return sum(answer.message_count or 0 for answer in purged)


async def require_started_in_time(fleet: Fleet, job: Job, *, due: datetime) -> None:
    """The job has succeeded, and was not started before its time."""
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.text) == (JobState.SUCCEEDED, answer_to(job))
    record = await fleet.get(job)
    # Redis keeps milliseconds.
    assert record.started_at is not None
    assert record.started_at >= due - timedelta(milliseconds=1)


async def test_a_job_starts_no_earlier_than_its_time_and_its_wait_counts_from_then(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit("later", pool=pool, delay_s=2, priority="urgent")
    at_once = await fleet.submit("at once", pool=pool)
    await fleet.wait(at_once, timeout_s=PATIENCE_S)

    assert job.not_before is not None
    await require_started_in_time(fleet, job, due=job.not_before)
    record = await fleet.get(job)
    assert record.not_before == job.not_before.replace(microsecond=job.not_before.microsecond // 1000 * 1000)
    assert record.result is not None
    assert record.result.timings is not None
    assert record.finished_at is not None
    since_due = record.finished_at - job.not_before
    assert record.result.timings.queue_wait_s <= since_due.total_seconds() + 0.01
    journal = await journal_of(store, job)
    assert kinds_of(journal) == ["queued", "running", "tokens", "finished"]
    assert timeline(journal)[0].words.startswith("queued, to start no earlier than 2")


async def test_its_message_comes_into_the_queue_when_no_process_of_ours_lives(
    connect: Connect, fleet: Fleet, foreign: ForeignClient, store: aioredis.Redis, pool: str
) -> None:
    async with connect() as client:
        job = await client.submit("later", pool=pool, delay_s=3)
    await until_waiting(foreign, 1)
    assert job.not_before is not None
    assert await now(store) >= job.not_before - timedelta(seconds=1.1)
    assert [entry.kind for entry in await journal_of(store, job)] == ["queued"]


async def test_until_then_it_is_no_work_that_waits(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    later = await fleet.submit("later", pool=pool, priority=9, delay_s=HOUR_S)
    assert await foreign.waiting() == 0
    assert (await fleet.pool(pool)).unfinished == {}
    assert (await fleet.pool(pool)).oldest_waiting_s is None
    job = await fleet.submit("hello", pool=pool)
    position = await fleet.position(job)
    assert position.ahead == 0
    assert (await fleet.pool(pool)).unfinished == {4: 1}
    assert [record.id async for record in fleet.list_jobs(JobFilter(pool=pool))] == [later.id, job.id]

    (wait,) = (await fleet.position(later)).waits
    assert wait.reason is WaitReason.SCHEDULED
    assert wait.until == (await fleet.get(later)).not_before
    assert (await fleet.position(later)).ahead is None
    # Its keys outlive the wait.
    lives_s = await store.ttl(job_key(later.id))
    assert lives_s > await store.ttl(job_key(job.id)) + HOUR_S / 2
    assert await store.ttl(request_key(later.id)) > await store.ttl(request_key(job.id)) + HOUR_S / 2
    # Neither a sweep nor a worker that looks for urgent jobs takes it for one that is lost.
    await start_worker(sweep_interval_s=SWEEP_S)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    lost = Job(pool=pool, body=chat("lost"), priority=9)
    await record_without_message(fleet, lost)
    await fleet.wait(lost, timeout_s=PATIENCE_S)
    assert kinds_of(await journal_of(store, later)) == ["queued"]
    await fleet.cancel(later)


async def record_without_message(fleet: Fleet, job: Job) -> None:
    """Do what a producer does that dies before it has published a job."""
    records = JobRecords(pipeline=fleet.pipeline, result_ttl_s=600, queued_ttl_s=3600)
    await records.create(job, reply_to="", call="dies", request=message_body(job))


async def test_it_is_cancelled_while_it_waits_and_its_message_starts_nothing(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("later", pool=pool, delay_s=2)
    assert await fleet.cancel(job) is JobState.CANCELLED
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.CANCELLED
    await until_waiting(foreign, 1)
    await start_worker()
    await until_waiting(foreign, 0)
    await fleet.wait(await fleet.submit("next", pool=pool), timeout_s=PATIENCE_S)
    assert kinds_of(await journal_of(store, job)) == ["queued", "finished"]


async def test_the_record_of_a_cancelled_job_lives_until_its_message_has_come(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("later", pool=pool, delay_s=20 * 24 * HOUR_S)
    await fleet.cancel(job)
    assert await store.ttl(job_key(job.id)) > 20 * 24 * HOUR_S


async def test_a_job_whose_producer_died_before_it_was_published_starts_at_its_time(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    due = await now(store) + timedelta(seconds=3)
    job = Job(pool=pool, body=chat("later"), not_before=due)
    await record_without_message(fleet, job)
    await start_worker(sweep_interval_s=SWEEP_S)
    await require_started_in_time(fleet, job, due=due)
    assert was_republished(await journal_of(store, job))


@pytest.mark.parametrize("loss", ["purge", "delete"])
async def test_a_job_whose_message_was_lost_while_it_waited_starts_at_its_time(
    connect: Connect,
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    loss: str,
) -> None:
    await start_worker(sweep_interval_s=SWEEP_S)
    job = await fleet.submit("later", pool=pool, delay_s=7)
    if loss == "purge":
        assert await purge_delayed(foreign) >= 1
    else:
        # The message is in the queue for 4 s, and finds none for 2 s behind it.
        assert await foreign.waiting(delay_queues()[2]) >= 1
        await foreign.channel.queue_delete(delay_queues()[1])
    assert job.not_before is not None
    await require_started_in_time(fleet, job, due=job.not_before)
    assert was_republished(await journal_of(store, job))
    # A process that begins to submit such jobs declares all queues.
    async with connect() as client:
        again = await client.submit("again", pool=pool, delay_s=3)
        # This raises if there is none.
        await foreign.waiting(delay_queues()[1])
    assert again.not_before is not None
    await require_started_in_time(fleet, again, due=again.not_before)


async def test_a_queue_that_is_full_at_its_time_delays_it(
    connect: Connect, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    async with connect(queue_max_length=1) as fleet:
        await fleet.declare_pool(pool)
        first = await fleet.submit("fills the queue", pool=pool)
        later = await fleet.submit("later", pool=pool, delay_s=3)

        async def is_due() -> bool:
            return later.not_before is not None and await now(store) > later.not_before

        await eventually(is_due)
        # A quorum queue takes a few above its limit.
        dropped = ServiceSettings().queue_type is QueueType.CLASSIC
        assert await foreign.waiting() == 1 or not dropped
        await start_worker(sweep_interval_s=SWEEP_S, queue_max_length=1)
        assert (await fleet.wait(first, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
        assert (await fleet.wait(later, timeout_s=PATIENCE_S)).text == answer_to(later)
        assert was_republished(await journal_of(store, later)) or not dropped


async def test_redis_that_has_lost_everything_costs_it_nothing(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("later", pool=pool, delay_s=3)
    assert await store.delete(job_key(job.id), journal_key(job.id), request_key(job.id)) == 3
    assert await store.delete(open_key(pool, job.priority)) == 1
    await start_worker()

    async def has_ended() -> bool:
        record = (await fleet.get_many([job]))[job.id]
        return record is not None and record.state.terminal

    await eventually(has_ended)
    assert job.not_before is not None
    await require_started_in_time(fleet, job, due=job.not_before)


async def test_a_job_of_another_client_that_comes_too_early_goes_back_to_the_broker(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start_worker(sweep_interval_s=SWEEP_S)
    waits_long = Job(pool=pool, body=chat("long"), not_before=await now(store) + timedelta(days=100))
    await foreign.publish(message_body(waits_long), message_id=waits_long.id, priority=4)

    async def is_back() -> bool:
        try:
            known = (await fleet.get_many([waits_long]))[waits_long.id] is not None
            return known and await delayed(foreign) >= 1
        except aiormq.exceptions.ChannelNotFoundEntity:
            # The worker has not declared the queues yet.
            await foreign.reopen()
            return False

    await eventually(is_back)
    record = await fleet.get(waits_long)
    assert (record.state, record.attempt) == (JobState.QUEUED, 0)
    assert await open_in(store, pool) == {waits_long.id}
    assert await store.ttl(job_key(waits_long.id)) > 100 * 24 * HOUR_S
    assert await store.get(request_key(waits_long.id)) == message_body(waits_long)

    monkeypatch.setattr(claim, "EARLY_S", 1.0)
    due = await now(store) + timedelta(seconds=2)
    soon = Job(pool=pool, body=chat("soon"), not_before=due)
    await foreign.publish(message_body(soon), message_id=soon.id, priority=4)

    async def is_known() -> bool:
        return (await fleet.get_many([soon]))[soon.id] is not None

    await eventually(is_known)
    await require_started_in_time(fleet, soon, due=due)
    assert await fleet.cancel(waits_long) is JobState.CANCELLED


async def test_a_worker_holds_a_message_that_comes_a_little_too_early(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    due = await now(store) + timedelta(seconds=2)
    job = Job(pool=pool, body=chat("soon"), not_before=due)
    await record_without_message(fleet, job)
    await foreign.publish(message_body(job), message_id=job.id, priority=4)
    await require_started_in_time(fleet, job, due=due)
    assert kinds_of(await journal_of(store, job)).count("running") == 1


async def test_whoever_submits_it_again_gets_the_same_job_at_its_first_time(
    fleet: Fleet, foreign: ForeignClient, pool: str
) -> None:
    keyed = await fleet.submit("later", pool=pool, idempotency_key=pool, delay_s=HOUR_S, priority=7)
    record = await fleet.get(keyed)
    for again in (
        await fleet.submit("later", pool=pool, idempotency_key=pool),
        await fleet.submit("later", pool=pool, idempotency_key=pool, delay_s=2 * HOUR_S, priority=2),
    ):
        assert (again.id, again.priority, again.not_before) == (keyed.id, 7, record.not_before)
    at_once = await fleet.submit("at once", pool=pool, idempotency_key=f"{pool}-2")
    again = await fleet.submit("at once", pool=pool, idempotency_key=f"{pool}-2", delay_s=HOUR_S)
    assert (again.id, again.not_before) == (at_once.id, None)
    job = await fleet.submit(Job(pool=pool, body=chat("later")), delay_s=HOUR_S)
    joined = await fleet.submit(job.model_copy(update={"not_before": None}))
    record = await fleet.get(job)
    assert joined.not_before == record.not_before
    assert await foreign.waiting() == 1, "that of the one that may start"
    for each in (keyed, at_once, job):
        await fleet.cancel(each)


async def test_a_time_that_is_over_is_now(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    await start_worker()
    job = await fleet.submit("now", pool=pool, not_before=datetime(2020, 1, 1, tzinfo=UTC))
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


async def test_what_cannot_start_later_is_refused(fleet: Fleet, store: aioredis.Redis, pool: str) -> None:
    soon = await now(store) + timedelta(hours=1)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"delay_s": 31 * 24 * HOUR_S}, "delay_s: 2678400.0 is not a number of seconds from 0 to 2592000"),
        ({"delay_s": -1}, "delay_s: -1 is not a number of seconds"),
        ({"delay_s": "1h"}, "delay_s: '1h' is not a number of seconds"),
        ({"not_before": soon + timedelta(days=31)}, "is more than 30 days from now, which is the limit"),
        ({"not_before": soon, "delay_s": 1}, "delay_s: is another way to say not_before"),
        ({"not_before": soon, "expires_at": soon}, "is not after not_before"),
        ({"not_before": soon, "session_id": "s"}, "not_before: a turn of a session starts when"),
        ({"not_before": soon.replace(tzinfo=None)}, "not_before: "),
        ({"not_before": 60}, "not_before: must be a time with its time zone, such as"),
        ({"expires_at": "60"}, "expires_at: must be a time with its time zone, such as"),
        ({"after": "x"}, "after: must be a list, not a string"),
    ]
    for options, why in refused:
        with pytest.raises(InvalidJobError) as it:
            await fleet.submit("later", pool=pool, **options)
        assert why in str(it.value)
    with pytest.raises(UnknownPoolError):
        await fleet.submit("later", pool=f"no-{pool}", delay_s=HOUR_S)
    assert [record async for record in fleet.list_jobs(JobFilter(pool=f"no-{pool}"))] == []


async def test_a_message_that_contradicts_itself_fails_at_once(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    soon = await now(store) + timedelta(hours=1)
    job = Job(pool=pool, body=chat("never"), not_before=soon, expires_at=soon)
    await foreign.publish(message_body(job), message_id=job.id)

    async def is_known() -> bool:
        return (await fleet.get_many([job]))[job.id] is not None

    await eventually(is_known)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert "is not after not_before" in result.error.message


async def test_the_command_line_and_the_gateway_submit_it(
    fleet: Fleet, inferfleet: RunCommand, start_gateway: StartGateway, pool: str
) -> None:
    ended = await inferfleet("submit", "later", "--pool", pool, "--not-before", "1h")
    assert ended.code == 0, ended.err
    record = await fleet.get(ended.out.strip())
    assert record.not_before is not None
    shown = await inferfleet("jobs", "show", record.id)
    at = f"{record.not_before:%Y-%m-%d %H:%M:%S} UTC"
    assert f"queued, to start no earlier than {at}" in shown.out
    # Up to an hour, as hours, minutes and seconds.
    assert re.search(rf"waits: it starts no earlier than {at}, in [01]:\d\d:\d\d\n", shown.out)
    wrong = await inferfleet("submit", "later", "--pool", pool, "--not-before", "soon")
    assert "--not-before" in wrong.err

    gateway = await start_gateway()
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        accepted = await http.post("/v1/jobs", json={"body": chat(), "delay_s": HOUR_S})
        assert accepted.status_code == 202, accepted.text
        shown_job = (await http.get(accepted.headers["location"])).json()
        assert "not_before" in shown_job
        due = record.not_before.isoformat()
        many = await http.post("/v1/jobs", json=[{"body": chat(), "not_before": due}] * 2)
        for job in many.json():
            assert (await fleet.get(job["id"])).not_before == record.not_before
        refused = await http.post("/v1/jobs", json={"body": chat(), "delay_s": "1h"})
        assert refused.status_code == 400
        assert "delay_s" in refused.text
    for job in [record.id, accepted.json()["id"], *(job["id"] for job in many.json())]:
        await fleet.cancel(job)
