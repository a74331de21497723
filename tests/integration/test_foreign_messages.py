"""Messages that another AMQP client published: good ones run, bad ones end where a person finds them."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorker,
    answer_to,
    chat,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, FailureCode, Job, JobState
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import reply_key, result_key
from inferfleet.worker.engines.simulated import SimulatedEngine


def message(**fields: Any) -> bytes:
    """A job as another language would write it: only what must be there."""
    return json.dumps({"id": new_job_id(), "body": chat(), **fields}).encode()


async def still_works(fleet: Fleet, pool: str) -> None:
    """The worker runs the next job as if nothing had been."""
    job = await fleet.submit("and now?", pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not a job: the job: is not JSON"),
        (b"\x00\xff\xfe garbage", "not a job: the job: is not JSON"),
        (b'{"id": ', "not a job: the job: is not JSON"),
        (b"[1, 2, 3]", "not a job: the job: must be an object, not a list"),
        (b'"hello"', "not a job: the job: must be an object, not a string"),
        (json.dumps({"body": chat()}).encode(), "not a job: id: missing"),
        (message(id="42"), "not a job: id: '42' is not a UUID"),
        (message(body="hello"), "not a job: body: must be an object, not a string"),
        (message(priority=11), "not a job: priority: 11 is above the maximum 9"),
        (message(endpoint="/v1/images"), "not a job: endpoint: '/v1/images' is not one of"),
    ],
    # Every process that collects the tests must give them the same names.
    ids=itertools.count(),
)
async def test_what_is_not_a_job_is_dead_lettered_as_it_came(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str, body: bytes, why: str
) -> None:
    await start_worker(worker_id="w-1")
    before = datetime.now(UTC)
    await foreign.publish(body, message_id="from-afar", headers={"origin": "elsewhere"})
    letter = await foreign.dead_letter()
    headers = letter.header.properties.headers or {}
    assert letter.body == body
    assert letter.header.properties.message_id == "from-afar"
    assert headers["origin"] == "elsewhere"
    assert headers["x-inferfleet-code"] == "invalid_request"
    assert str(headers["x-inferfleet-message"]).startswith(why)
    assert (headers["x-inferfleet-attempts"], headers["x-inferfleet-worker"]) == (0, "w-1")
    assert before <= datetime.fromisoformat(str(headers["x-inferfleet-died-at"])) <= datetime.now(UTC)
    await still_works(fleet, pool)


async def test_headers_of_every_type_survive_the_way_to_the_dead_letters(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    headers: dict[str, Any] = {
        "text": "é",
        "binary": bytearray(b"\x00\xff"),
        "number": -7,
        "large": 2**62,
        "fraction": 0.5,
        "truth": True,
        "nothing": None,
        "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "list": [1, "two", {"three": 3}],
        "table": {"nested": {"deep": [False]}},
    }
    await foreign.publish(b"garbage", headers=headers)
    letter = await foreign.dead_letter()
    found = letter.header.properties.headers or {}
    assert {name: found.get(name) for name in headers} == headers
    await still_works(fleet, pool)


async def test_a_job_with_the_least_that_must_be_there_runs(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker
) -> None:
    body = message()
    job = Job.model_validate_json(body)
    await start_worker()
    await foreign.publish(body)
    await until_known(fleet, job)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.text) == (JobState.SUCCEEDED, answer_to(job))


async def test_a_job_that_expired_before_it_came_has_its_result_when_its_client_is_told(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It has no journal before its end, which Redis has not lost. The line for its client comes once."""
    await start_worker()
    job_id, client = new_job_id(), f"foreign-{pool}"
    await foreign.publish(message(id=job_id, expires_at="2020-01-01T00:00:00Z"), reply_to=client)
    replies = reply_key(client)
    lines: Any = None
    while not lines:
        lines = await store.xread({replies: "0"}, block=1000)
    assert await store.exists(result_key(job_id))
    assert [fields[b"state"] for _, fields in lines[0][1]] == [b"expired"]
    await still_works(fleet, pool)
    assert await store.xlen(replies) == 1
    assert [line.entry.kind async for line in fleet.stream(job_id)] == ["finished"]
    assert "Redis lost" not in caplog.text


async def until_known(fleet: Fleet, job: Job) -> None:
    """A foreign client makes no record; the worker does when it starts."""
    async with asyncio.timeout(PATIENCE_S):
        while (await fleet.get_many([job]))[job.id] is None:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "body.messages: is missing"),
        ({"messages": [{"content": "hello"}]}, "body.messages[0].role: is missing"),
        (chat(temperature=-1), "body.temperature: -1 is below the minimum 0"),
        ({"messages": 5}, "body.messages: must be a list, not a number"),
    ],
)
async def test_a_job_with_a_bad_body_fails_once_and_for_good(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str, body: Any, why: str
) -> None:
    message_body = message(body=body, pool=pool)
    job = Job.model_validate_json(message_body)
    await start_worker()
    await foreign.publish(message_body)
    await until_known(fleet, job)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    assert result.error.message.startswith(why)
    await still_works(fleet, pool)


class ChatOnlyEngine(SimulatedEngine):
    """An engine whose model only chats."""

    def __init__(self) -> None:
        super().__init__(model="chatty", max_running=4, engine_args={"speed": 0})

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        return frozenset({Endpoint.CHAT})


async def test_a_job_for_an_endpoint_that_the_engine_lacks_fails_with_what_it_has(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(ChatOnlyEngine())
    job = await fleet.submit("hello", pool=pool, endpoint=Endpoint.EMBEDDINGS)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    assert "/v1/embeddings needs an embedding model" in result.error.message
    assert "'chatty' answers only /v1/chat/completions; submit the job to a pool" in result.error.message
    await still_works(fleet, pool)


class TouchyEngine(SimulatedEngine):
    """An engine that cannot even look at a body it does not expect."""

    def __init__(self) -> None:
        super().__init__(model="touchy", max_running=4, engine_args={"speed": 0})

    def resumable(self, generation: Any) -> bool:
        return bool(generation.body["messages"][0]["content"])


async def test_the_engine_never_sees_a_body_that_breaks_the_contract(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(TouchyEngine())
    body = message(body={"messages": []}, pool=pool)
    job = Job.model_validate_json(body)
    await foreign.publish(body)
    await until_known(fleet, job)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    assert result.attempts <= 1
    await still_works(fleet, pool)


async def test_a_retry_comes_back_to_the_queue_that_it_came_from(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker
) -> None:
    """Also if the publisher left out the pool, which then is ``default`` in the message."""
    body = message(body=chat(simulated={"fail": "engine_error", "fail_times": 1}))
    job = Job.model_validate_json(body)
    assert job.pool != foreign.pool
    await start_worker()
    await foreign.publish(body)
    await until_known(fleet, job)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert (result.state, result.attempts) == (JobState.SUCCEEDED, 2)


async def test_garbage_on_the_control_exchange_changes_nothing(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    await still_works(fleet, pool)
    for order in (b"", b"garbage", b'{"kind":"explode"}', b'{"kind":"drain"}', message()):
        await foreign.channel.basic_publish(order, exchange="inferfleet.control")
    await still_works(fleet, pool)
    assert not worker.running.done()
