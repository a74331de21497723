"""A job whose prompt begins like an earlier one goes to the worker that has that beginning in its cache."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    chat,
    eventually,
    journal_of,
    until_running,
)
from tests.integration.sessions.test_warm_turns import LONG_S, until_ready
from tests.integration.test_lost_messages import was_republished
from tests.integration.test_preemption import endless_chat

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState, Priority
from inferfleet.schemas.names import warm_prompt_key, warm_queue, warm_turns
from inferfleet.schemas.prompt_beginnings import beginnings
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.topology import declare_warm_queue

pytestmark = pytest.mark.matrix

CHARS = 200
DOCUMENT = "The sea is deep. " * 40


def question(text: str, *, document: str = DOCUMENT, **more: Any) -> dict[str, Any]:
    """A chat about a document, which is in the system prompt."""
    said = [{"role": "system", "content": document}, {"role": "user", "content": text}]
    return chat(text) | {"messages": said} | more


async def ran_on(fleet: Fleet, pool: str, body: dict[str, Any], **options: Any) -> str | None:
    result = await fleet.run(body, pool=pool, wait_timeout_s=PATIENCE_S, **options)
    assert result.state is JobState.SUCCEEDED
    return result.worker_id


async def until_noted(store: aioredis.Redis, pool: str, body: dict[str, Any], worker_id: str) -> None:
    keys = [warm_prompt_key(pool, name) for name in beginnings(Job(pool=pool, body=body), least=CHARS)]

    async def is_noted() -> bool:
        noted = [await store.get(key) for key in keys]
        return bool(keys) and noted == [warm_turns(pool, worker_id).encode()] * len(keys)

    await eventually(is_noted)


@pytest.mark.parametrize("chars", [CHARS, 0])
async def test_jobs_whose_prompts_begin_alike_run_on_the_worker_that_ran_the_first(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str, chars: int
) -> None:
    """Without the setting they run anywhere: RabbitMQ delivers round-robin."""
    settings: dict[str, Any] = {"warm_wait_s": LONG_S, "warm_prompt_chars": chars}
    async with connect(warm_prompt_chars=chars) as fleet:
        for name in "abcd":
            await start_worker(worker_id=f"{pool}-{name}", **settings)
        await until_ready(fleet, *(f"{pool}-{name}" for name in "abcd"))
        stayed = 0
        for number in range(4):
            document = f"{number} {DOCUMENT}"
            first = await ran_on(fleet, pool, question("first", document=document))
            if chars:
                await until_noted(store, pool, question("", document=document), first or "")
            bodies = [question(str(each), document=document) for each in range(4)]
            stayed += {await ran_on(fleet, pool, body) for body in bodies} == {first}
    assert stayed == (4 if chars else 0)


async def test_a_worker_that_has_left_gets_no_such_jobs(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    settings: dict[str, Any] = {"warm_wait_s": LONG_S, "warm_prompt_chars": CHARS}
    async with connect(warm_prompt_chars=CHARS) as fleet:
        first = await start_worker(worker_id=f"{pool}-first", **settings)
        await until_ready(fleet, f"{pool}-first")
        await ran_on(fleet, pool, question("one"))
        await until_noted(store, pool, question(""), f"{pool}-first")
        await start_worker(worker_id=f"{pool}-second", **settings)
        await until_ready(fleet, f"{pool}-second")
        await first.stop()
        # It would wait for an hour there.
        assert await ran_on(fleet, pool, question("two")) == f"{pool}-second"
        await until_noted(store, pool, question(""), f"{pool}-second")


@pytest.mark.parametrize(
    ("client", "options", "waits"),
    [
        pytest.param({}, {}, True, id="it waits"),
        pytest.param({}, {"priority": Priority.URGENT}, False, id="urgent"),
        pytest.param({"keep_requests": False}, {}, False, id="Redis does not keep its request"),
    ],
)
async def test_only_a_job_that_may_be_published_again_and_is_not_urgent_waits_for_a_full_worker(
    connect: Connect,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    client: dict[str, Any],
    options: dict[str, Any],
    waits: bool,
) -> None:
    settings: dict[str, Any] = {
        "warm_wait_s": LONG_S,
        "warm_prompt_chars": CHARS,
        "max_running": 1,
        "look_ahead": 0,
        "preempt_limit": 0,
    }
    async with connect(warm_prompt_chars=CHARS, **client) as fleet:
        await start_worker(worker_id=f"{pool}-full", **settings)
        await until_ready(fleet, f"{pool}-full")
        await ran_on(fleet, pool, question("one"))
        await until_noted(store, pool, question(""), f"{pool}-full")
        long = await fleet.submit(endless_chat("long"), pool=pool)
        await until_running(fleet, long)
        await start_worker(worker_id=f"{pool}-other", **settings)
        await until_ready(fleet, f"{pool}-other")
        job = await fleet.submit(question("two"), pool=pool, **options)
        if waits:
            # The other worker is idle.
            assert await ran_on(fleet, pool, question("elsewhere", document="x" * CHARS)) == f"{pool}-other"
            assert (await fleet.get(job)).state is JobState.QUEUED
            await fleet.cancel(long)
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
        assert result.worker_id == (f"{pool}-full" if waits else f"{pool}-other")
        await fleet.cancel(long)


async def test_a_job_in_a_workers_queue_is_not_lost_and_one_that_is_lost_there_is_published_again(
    connect: Connect,
    start_worker: StartWorker,
    services: Services,
    foreign: ForeignClient,
    store: aioredis.Redis,
    pool: str,
) -> None:
    waits: dict[str, Any] = {"warm_wait_s": 4.0, "warm_prompt_chars": CHARS}
    # A queue like that of a worker that was killed a moment ago.
    gone = f"{pool}-gone"
    settings = WorkerSettings(amqp_url=services.amqp_url, pool=pool, worker_id=gone, **waits)

    async def submit_to_gone(fleet: Fleet, body: dict[str, Any]) -> Job:
        for name in beginnings(Job(pool=pool, body=body), least=CHARS):
            await store.set(warm_prompt_key(pool, name), warm_turns(pool, gone))
        return await fleet.submit(body, pool=pool)

    async with connect(warm_prompt_chars=CHARS) as fleet:
        await start_worker(worker_id=pool, sweep_interval_s=0.4, **waits)
        await until_ready(fleet, pool)
        await ran_on(fleet, pool, chat("first"))
        async with open_amqp(services.amqp_url, timeout_s=PATIENCE_S, name="gone") as connection:
            await declare_warm_queue(await connection.channel(), settings)

        moved = await submit_to_gone(fleet, question("moved"))
        assert await foreign.waiting(warm_queue(pool, gone)) == 1
        # Meanwhile other jobs come and go, and the queue is empty.
        while not (await fleet.get(moved)).state.terminal:
            await ran_on(fleet, pool, chat("other"))
        assert not was_republished(await journal_of(store, moved))

        lost = await submit_to_gone(fleet, question("lost"))
        await foreign.channel.queue_purge(warm_queue(pool, gone))
        result = await fleet.wait(lost, timeout_s=PATIENCE_S)
        assert result.state is JobState.SUCCEEDED
        assert was_republished(await journal_of(store, lost))
