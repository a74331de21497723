"""Jobs that run after others: when they start, with which texts, and what ends them."""

from __future__ import annotations

import asyncio
from typing import Any

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
    slow_chat,
    until_running,
)
from tests.integration.test_lost_messages import SWEEP_S, open_in

from inferfleet.producer import Fleet
from inferfleet.producer.positions import WaitReason
from inferfleet.schemas import FailureCode, Job, JobState
from inferfleet.schemas.errors import InvalidJobError, QueueFullError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.message import message_body, read_job
from inferfleet.schemas.names import job_key, job_queue, open_key, request_key
from inferfleet.wire.redis import followers
from inferfleet.wire.redis.followers import Followers, Looked
from inferfleet.wire.redis.job_endings import JobEndings
from inferfleet.wire.redis.records import Closed, JobRecords
from inferfleet.worker import sweep

pytestmark = pytest.mark.store

BOTH = "first: {{jobs.0.text}}, second: {{ jobs.1.text }}, not {{jobs.x.text}}"


async def test_a_job_starts_when_all_others_have_succeeded_with_their_texts(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    first, second = await fleet.submit_many(["one", "two"], pool=pool)
    last = await fleet.submit(BOTH, pool=pool, after=[first, second.id])
    assert await foreign.waiting() == 2
    (wait,) = (await fleet.position(last)).waits
    assert wait.reason is WaitReason.AFTER
    assert wait.job_id == first.id
    assert f"{first.id} (queued), {second.id} (queued)" in wait.detail
    assert (await fleet.pool(pool)).unfinished == {4: 2}

    await start_worker()
    result = await fleet.wait(last, timeout_s=PATIENCE_S)

    texts = [(await fleet.wait(job)).text for job in (first, second)]
    asked = f"first: {texts[0]}, second: {texts[1]}, not {{{{jobs.x.text}}}}"
    assert result.text == answer_to(Job(body=chat(asked)))
    assert kinds_of(await journal_of(store, last)) == ["queued", "running", "tokens", "finished"]
    record = await fleet.get(last)
    assert record.after == (first.id, second.id)
    assert record.started_at is not None
    for job in (first, second):
        ended = (await fleet.get(job)).finished_at
        assert ended is not None
        assert ended <= record.started_at

    async def is_closed() -> bool:
        return await open_in(store, pool) == set()

    await eventually(is_closed)
    # What has ended long ago may be followed, too.
    again = await fleet.submit(BOTH, pool=pool, after=[first, second])
    assert (await fleet.wait(again, timeout_s=PATIENCE_S)).text == result.text


@pytest.mark.parametrize("how", ["fails", "is cancelled while it waits", "is cancelled while it runs"])
async def test_a_job_fails_if_another_one_does_not_succeed_and_so_do_those_behind_it(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str, how: str
) -> None:
    slow: dict[str, Any] = slow_chat(tokens=10_000, step_s=0.05)
    broken = chat(simulated={"fail": "invalid_request"})
    first = await fleet.submit(broken if how == "fails" else slow, pool=pool, max_attempts=1)
    other = await fleet.submit("other", pool=pool)
    second = await fleet.submit("{{jobs.1.text}}", pool=pool, after=[other, first])
    third = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[second])
    fourth = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[second, third])
    if how == "is cancelled while it waits":
        await fleet.cancel(first)
    else:
        await start_worker()
    if how == "is cancelled while it runs":
        await until_running(fleet, first)
        await fleet.cancel(first)
    results = await fleet.wait_many([second, third, fourth], timeout_s=PATIENCE_S)
    for result, culprit in zip(results, (first, second, second), strict=True):
        assert result.state is JobState.FAILED
        assert result.error is not None
        assert result.error.code is FailureCode.PREDECESSOR_FAILED
        assert culprit.id in result.error.message
    assert not (await fleet.get(second)).cancel_requested
    assert kinds_of(await journal_of(store, second)) == ["queued", "finished"]


async def test_a_job_that_waits_for_others_is_cancelled_with_those_behind_it(
    fleet: Fleet, foreign: ForeignClient, pool: str
) -> None:
    first = await fleet.submit("one", pool=pool)
    second = await fleet.submit("two", pool=pool, after=[first])
    third = await fleet.submit("three", pool=pool, after=[second])
    assert await fleet.cancel(second) is JobState.CANCELLED
    result = await fleet.wait(third, timeout_s=PATIENCE_S)
    assert result.error is not None
    assert result.error.message == f"not started: job {second.id} was cancelled"
    assert await foreign.waiting() == 1


async def test_what_nobody_let_go_on_the_sweep_does(
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever ended the other job has died before it looked who follows, or Redis has forgotten who does."""
    first, bad = await fleet.submit_many(["one", "two"], pool=pool)
    last = await fleet.submit("after {{jobs.0.text}}", pool=pool, after=[first])
    lost = await fleet.submit("after {{jobs.0.text}}", pool=pool, after=[bad])
    for job in (first, bad):
        assert await store.hdel(job_key(job.id), "followers") == 1
    await fleet.cancel(bad)
    await start_worker(sweep_interval_s=SWEEP_S)
    text = (await fleet.wait(first, timeout_s=PATIENCE_S)).text
    assert (await fleet.wait(last, timeout_s=PATIENCE_S)).text == answer_to(Job(body=chat(f"after {text}")))
    assert (await fleet.wait(lost, timeout_s=PATIENCE_S)).state is JobState.FAILED


async def test_the_sweep_looks_at_all_jobs_of_the_same_millisecond(
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep, "FOLLOWERS", 2)
    paused = f"{pool}.paused"
    await fleet.declare_pool(paused)
    first, bad = await fleet.submit_many(["one", "two"], pool=paused)
    for _ in range(4):
        await fleet.submit("{{jobs.0.text}}", pool=pool, after=[first])
    behind_all = f"ffffffff{new_job_id()[8:]}"
    last = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[bad], id=behind_all)
    key = open_key(pool, last.priority)
    entries: list[Any] = await store.zrange(key, 0, -1, withscores=True)
    at = entries[0][1]
    await store.zadd(key, {job_id: at for job_id, _ in entries}, xx=True)
    assert await store.hdel(job_key(bad.id), "followers") == 1
    await fleet.cancel(bad)
    await start_worker(sweep_interval_s=SWEEP_S)
    assert (await fleet.wait(last, timeout_s=PATIENCE_S)).state is JobState.FAILED
    await fleet.cancel(first)


async def test_a_job_whose_pool_is_gone_holds_up_no_other(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    gone = f"{pool}.gone"
    await fleet.declare_pool(gone)
    first = await fleet.submit("one", pool=pool)
    lost = await fleet.submit("{{jobs.0.text}}", pool=gone, after=[first])
    beside = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[first])
    await foreign.channel.queue_delete(job_queue(gone))
    worker = await start_worker(sweep_interval_s=3600)
    text = (await fleet.wait(first, timeout_s=PATIENCE_S)).text
    answer = answer_to(Job(body=chat(text)))
    assert (await fleet.wait(beside, timeout_s=PATIENCE_S)).text == answer
    # Nothing is tried again until the pool has workers.
    await worker.stop()
    assert await foreign.waiting() == 0
    await start_worker(pool=gone, sweep_interval_s=SWEEP_S)
    assert (await fleet.wait(lost, timeout_s=PATIENCE_S)).text == answer
    await foreign.channel.queue_delete(job_queue(gone))


async def test_a_job_that_a_worker_cannot_read_holds_up_no_other(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """Its client is newer than the worker."""
    first, bad = await fleet.submit_many(["one", "two"], pool=pool)
    newer = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[first], priority="batch")
    beside = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[first])
    swept = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[bad], priority="high")
    await store.set(request_key(newer.id), b'{"new": 1}', keepttl=True)
    assert await store.hdel(job_key(bad.id), "followers") == 1
    await fleet.cancel(bad)
    worker = await start_worker(sweep_interval_s=SWEEP_S)
    text = (await fleet.wait(first, timeout_s=PATIENCE_S)).text
    assert (await fleet.wait(beside, timeout_s=PATIENCE_S)).text == answer_to(Job(body=chat(text)))
    assert (await fleet.wait(swept, timeout_s=PATIENCE_S)).state is JobState.FAILED
    await worker.stop()
    assert await foreign.waiting() == 0
    await store.set(request_key(newer.id), message_body(newer), keepttl=True)
    await start_worker(sweep_interval_s=SWEEP_S)
    assert (await fleet.wait(newer, timeout_s=PATIENCE_S)).text == answer_to(Job(body=chat(text)))


async def test_an_unreadable_message_ends_the_jobs_behind_its_job(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    first = await fleet.submit("one", pool=pool)
    last = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[first])
    reply_to: Any = await store.hget(job_key(first.id), "reply_to")
    await foreign.channel.queue_purge(job_queue(pool))
    await foreign.publish(b"{", reply_to=reply_to.decode(), message_id=first.id)
    await start_worker(sweep_interval_s=3600)
    result = await fleet.wait(last, timeout_s=PATIENCE_S)
    assert result.error is not None
    assert result.error.message == f"not started: job {first.id} has failed"


async def test_a_turn_whose_pool_is_gone_ends_the_jobs_behind_it(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    gone = f"{pool}.gone"
    await fleet.declare_pool(gone)
    session = fleet.session(pool)
    first = await session.send("first", pool=pool)
    doomed = await session.send("second", pool=gone)
    last = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[doomed])
    await foreign.channel.queue_delete(job_queue(gone))
    await start_worker(sweep_interval_s=3600)
    assert (await fleet.wait(first, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    result = await fleet.wait(last, timeout_s=PATIENCE_S)
    assert result.error is not None
    assert result.error.message == f"not started: job {doomed.id} has failed"


async def test_a_worker_gives_the_slot_back_before_it_lets_others_go_on(
    fleet: Fleet, start_worker: StartWorker, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await fleet.submit("one", pool=pool, priority="high")
    last = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[first])
    beside = await fleet.submit("beside", pool=pool)
    may_look, look = asyncio.Event(), Followers.look

    async def look_later(self: Followers, job_id: str, **options: Any) -> Looked:
        await may_look.wait()
        return await look(self, job_id, **options)

    monkeypatch.setattr(Followers, "look", look_later)
    await start_worker(sweep_interval_s=3600, max_running=1)
    assert (await fleet.wait(beside, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    assert not may_look.is_set()
    may_look.set()
    assert (await fleet.wait(last, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_the_message_of_the_other_job_lets_it_go_on_after_a_crash(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    """A worker has ended the other job and died before it let this one go on: the message comes again."""
    first = await fleet.submit("one", pool=pool)
    last = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[first])
    # Cancelled by a process that dies then, as far as its followers are concerned.
    records = JobRecords(pipeline=fleet.pipeline, result_ttl_s=600, queued_ttl_s=3600)
    result = await fleet.submission._cancelled(await fleet.get(first), keep=False, waits=True)  # pyright: ignore[reportPrivateUsage]
    assert await JobEndings.cancel(records, first.id, result) is JobState.CANCELLED
    assert (await fleet.get(last)).state is JobState.QUEUED
    await start_worker(sweep_interval_s=3600)
    assert (await fleet.wait(last, timeout_s=PATIENCE_S)).state is JobState.FAILED


async def test_a_job_that_was_let_go_and_not_published_is_published(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(sweep_interval_s=3600)
    first = await fleet.submit("one", pool=pool)
    await fleet.wait(first, timeout_s=PATIENCE_S)
    # Its process dies after the script.
    job = Job(pool=pool, body=chat("after {{jobs.0.text}}"), after=(first.id,))
    records = JobRecords(pipeline=fleet.pipeline, result_ttl_s=600, queued_ttl_s=3600)
    await records.create(job, reply_to="", call="dies", request=message_body(job))

    async def dies(job: Job, body: bytes, reply_to: str) -> None:
        raise ConnectionError

    dying = Followers(fleet.pipeline, records, queued_ttl_s=3600, publish=dies)
    await dying.follow(job)
    with pytest.raises(ConnectionError):
        await dying.look(job.id)
    request: Any = await store.get(request_key(job.id))
    assert read_job(request).after is None
    await start_worker(sweep_interval_s=SWEEP_S)
    text = (await fleet.wait(first)).text
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(Job(body=chat(f"after {text}")))
    # Whoever looks again changes nothing.
    await dying.look(job.id)
    assert kinds_of(await journal_of(store, job)).count("running") == 1


async def test_a_producer_that_dies_after_the_record_leaves_a_job_that_ends(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    first = await fleet.submit("one", pool=pool)
    job = Job(pool=pool, body=chat("{{jobs.0.text}}"), after=(first.id,))
    records = JobRecords(pipeline=fleet.pipeline, result_ttl_s=600, queued_ttl_s=3600)
    await records.create(job, reply_to="", call="dies", request=message_body(job))
    await start_worker(sweep_interval_s=SWEEP_S)
    text = (await fleet.wait(first, timeout_s=PATIENCE_S)).text
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(Job(body=chat(text)))


async def test_a_look_at_a_job_that_is_about_to_be_refused_reads_no_answer_of_another_tenant(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    """Its producer dies between the record and the check of the other jobs, and the sweep looks at it."""
    await start_worker(sweep_interval_s=SWEEP_S)
    secret = await fleet.submit("the secret", pool=pool, tenant="victim")
    await fleet.wait(secret, timeout_s=PATIENCE_S)
    job = Job(pool=pool, tenant="attacker", body=chat("{{jobs.0.text}}"), after=(secret.id,))
    records = JobRecords(pipeline=fleet.pipeline, result_ttl_s=600, queued_ttl_s=3600)
    await records.create(job, reply_to="", call="dies", request=message_body(job))
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.error is not None
    # As for one that was never there.
    assert result.error.message == f"not started: job {secret.id} has no record any more"


async def test_a_job_that_others_may_publish_is_not_taken_back(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    """Its queue refuses its submitter; meanwhile a worker has looked at it, and publishes it."""
    await start_worker(sweep_interval_s=3600)
    first = await fleet.submit("one", pool=pool)
    await fleet.wait(first, timeout_s=PATIENCE_S)
    job = Job(pool=pool, body=chat("after {{jobs.0.text}}"), after=(first.id,))
    records = JobRecords(pipeline=fleet.pipeline, result_ttl_s=600, queued_ttl_s=3600)
    await records.create(job, reply_to="", call="submits", request=message_body(job))
    published: list[str] = []

    async def refuse(job: Job, body: bytes, reply_to: str) -> None:
        raise QueueFullError("full")

    async def publish(job: Job, body: bytes, reply_to: str) -> None:
        published.append(job.id)

    with pytest.raises(QueueFullError):
        await Followers(fleet.pipeline, records, queued_ttl_s=3600, publish=refuse).look(job.id, submits=True)
    await Followers(fleet.pipeline, records, queued_ttl_s=3600, publish=publish).look(job.id)
    assert published == [job.id]
    assert await records.close(job.id, call="submits") is Closed.SHARED


async def test_texts_that_make_a_body_too_large_are_not_put_into_it(
    fleet: Fleet, start_worker: StartWorker, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_worker()
    first = await fleet.submit("one", pool=pool)
    text = (await fleet.wait(first, timeout_s=PATIENCE_S)).text
    assert text is not None
    places, size = 50, len(text.encode())
    monkeypatch.setattr(followers, "MAX_BODY_BYTES", places * size - 1)
    monkeypatch.setattr(followers, "with_texts", None)
    job = await fleet.submit("{{jobs.0.text}}" * places, pool=pool, after=[first])
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    assert f"its body has {places * size:,} bytes" in result.error.message


async def followers_of(store: aioredis.Redis, job: Job) -> list[str]:
    found: Any = await store.hget(job_key(job.id), "followers")
    return (found or b"").decode().split()


async def test_a_full_queue_keeps_the_other_jobs_message_until_there_is_room(
    connect: Connect, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    full = f"{pool}.full"
    async with connect(queue_max_length=1) as fleet:
        await fleet.declare_pool(full)
        await fleet.declare_pool(pool)
        filling = await fleet.submit("fills the queue", pool=full)
        first = await fleet.submit("one", pool=pool)
        last = await fleet.submit("{{jobs.0.text}}", pool=full, after=[first])
        beside = await fleet.submit("{{jobs.0.text}}", pool=pool, after=[first])
        options: dict[str, Any] = {"queue_max_length": 1, "sweep_interval_s": 3600}
        await start_worker(**options)
        text = (await fleet.wait(first, timeout_s=PATIENCE_S)).text
        refused = Job(pool=full, body=chat("{{jobs.0.text}}"), after=(first.id,))
        with pytest.raises(QueueFullError):
            await fleet.submit(refused)
        assert (await fleet.get_many([refused]))[refused.id] is None
        assert await followers_of(store, first) == [last.id, beside.id]
        assert (await fleet.wait(beside, timeout_s=PATIENCE_S)).text == answer_to(Job(body=chat(text)))
        assert await foreign.waiting() == 0
        assert await foreign.waiting(job_queue(full)) == 1
        await start_worker(pool=full, **options)
        for job, answer in ((filling, answer_to(filling)), (last, answer_to(Job(body=chat(text))))):
            assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer
    await foreign.channel.queue_delete(job_queue(full))


async def test_the_same_key_with_other_predecessors_is_another_request(fleet: Fleet, pool: str) -> None:
    first = await fleet.submit("one", pool=pool)
    last = await fleet.submit("two", pool=pool, after=[first], idempotency_key=pool)
    again = await fleet.submit("two", pool=pool, after=[first], idempotency_key=pool)
    assert last.id == again.id
    joined = await fleet.submit(Job(id=last.id, pool=pool, body=chat("two")))
    assert joined.id == last.id
    assert (await fleet.position(last)).waits[0].reason is WaitReason.AFTER


async def test_what_cannot_follow_is_refused_and_leaves_nothing(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    first = await fleet.submit("one", pool=pool)
    unknown = new_job_id()
    own = new_job_id()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"after": [unknown]}, f"after: there is no job {unknown}"),
        ({"after": [first, unknown]}, f"after: there is no job {unknown}"),
        ({"after": [first], "tenant": "other"}, f"after: there is no job {first.id}"),
        ({"after": [first, first]}, "after: names the job itself, or another job twice"),
        ({"after": [own], "id": own}, "after: names the job itself"),
        ({"after": ["nonsense"]}, "after"),
        ({"after": [first], "session_id": "s"}, "after: a job that runs after others has no session_id"),
        ({"after": [first], "delay_s": 60}, "after: a job that runs after others has no not_before"),
    ]
    for options, why in refused:
        with pytest.raises(InvalidJobError) as it:
            await fleet.submit("two {{jobs.0.text}}", pool=pool, **options)
        assert why in str(it.value)
    with pytest.raises(
        InvalidJobError, match=r"\{\{jobs.1.text\}\} is the text of job number 1 of after, which has 1"
    ):
        await fleet.submit("two {{jobs.1.text}}", pool=pool, after=[first])

    async def only_the_first_is_open() -> bool:
        return await open_in(store, pool) == {first.id}

    await eventually(only_the_first_is_open)
    assert await followers_of(store, first) == []


async def test_a_message_of_another_client_cannot_wait_for_others(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = Job(pool=pool, body=chat("two"), after=(new_job_id(),))
    await foreign.publish(message_body(job), message_id=job.id)

    async def has_failed() -> bool:
        record = (await fleet.get_many([job]))[job.id]
        return record is not None and record.state is JobState.FAILED

    await eventually(has_failed)


async def test_the_command_line_and_the_gateway_submit_it(
    fleet: Fleet, inferfleet: RunCommand, start_gateway: StartGateway, start_worker: StartWorker, pool: str
) -> None:
    first = await fleet.submit("one", pool=pool)
    ended = await inferfleet("submit", "after {{jobs.0.text}}", "--pool", pool, "--after", first.id)
    assert ended.code == 0, ended.err
    shown = await inferfleet("jobs", "show", ended.out.strip())
    assert f"waits: it runs after {first.id} (queued)" in shown.out
    gateway = await start_gateway()
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        job = {"body": chat("after {{jobs.0.text}}"), "after": [first.id]}
        accepted = await http.post("/v1/jobs", json=job)
        assert accepted.status_code == 202, accepted.text
        refused = await http.post("/v1/jobs", json=job | {"after": [new_job_id()]})
        assert refused.status_code == 400, refused.text
    await start_worker()
    text = (await fleet.wait(first, timeout_s=PATIENCE_S)).text
    for job_id in (ended.out.strip(), accepted.json()["id"]):
        result = await fleet.wait(job_id, timeout_s=PATIENCE_S)
        assert result.text == answer_to(Job(body=chat(f"after {text}")))
