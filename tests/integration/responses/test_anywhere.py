"""A response on several gateways, and for several tenants."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai
import orjson
import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI
from tests.forked import ForkedProcess
from tests.integration.conftest import PATIENCE_S, StartGateway, StartWorker, WorkerProcess, reader_of
from tests.integration.responses.conftest import job_of, numbers, read, text_of, until_text

from inferfleet.producer import Fleet
from inferfleet.producer.openai.api import OpenAIApi
from inferfleet.producer.openai.conversations import ConversationsApi
from inferfleet.producer.openai.models import Models
from inferfleet.producer.openai.refusals import Refusal, RefusedError
from inferfleet.producer.openai.responses import ResponsesApi
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.errors import QueueFullError
from inferfleet.schemas.job import Job, JobState, new_job_id
from inferfleet.schemas.names import journal_key, response_key, result_key
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine


class Gateways:
    """Gateways as processes of their own."""

    def __init__(self, environment: Mapping[str, str], pool: str) -> None:
        self._environment = environment
        self._pool = pool
        self._started: list[WorkerProcess] = []
        self._clients: list[AsyncOpenAI] = []

    async def start(self) -> tuple[WorkerProcess, AsyncOpenAI]:
        """Start one, and return a client of it."""
        readable, writable = os.pipe()
        with os.fdopen(writable, "wb") as stderr:
            process = ForkedProcess(
                ["gateway", "--http-port", "0", "--pool", self._pool],
                env=self._environment,
                stdout=stderr,
                stderr=stderr,
            )
            gateway = WorkerProcess(process, await reader_of(readable))
        self._started.append(gateway)
        serves = await gateway.logged("serving OpenAI's API on ")
        url: str = serves["message"].split()[-1]
        client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S)
        self._clients.append(client)
        return gateway, client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        for gateway in self._started:
            await gateway.close()


@pytest.fixture
async def gateways(environment: dict[str, str], fleet: Fleet, pool: str) -> AsyncIterator[Gateways]:
    made = Gateways(environment, pool)
    yield made
    await made.close()


@pytest.mark.parametrize("background", [True, False])
async def test_a_client_of_a_gateway_that_is_killed_goes_on_with_another(
    gateways: Gateways, start_worker: StartWorker, pool: str, background: bool
) -> None:
    await start_worker(engine_args={"decode_step_base_s": 0.03})
    one, client = await gateways.start()
    _, other = await gateways.start()
    asked: Any = {"model": pool, "input": "hello", "max_output_tokens": 60, "background": background}
    asked["extra_body"] = {"ignore_eos": True}
    stream = await client.responses.create(**asked, stream=True)

    events: list[Any] = []

    async def follow() -> None:
        async for event in stream:
            events.append(event)
            if len(events) == 12:
                one.signal(signal.SIGKILL)

    with pytest.raises(openai.APIConnectionError):
        await follow()
    seen = numbers(events)[-1]
    response_id = events[0].response.id
    assert (await other.responses.retrieve(response_id)).status == "in_progress"
    events += await read(await other.responses.retrieve(response_id, stream=True, starting_after=seen))

    assert numbers(events) == list(range(len(events)))
    response = await other.responses.retrieve(response_id)
    assert events[-1].response == response
    assert text_of(events) == response.output_text
    assert response.usage is not None
    assert response.usage.output_tokens == 60


async def test_a_gateway_that_stops_says_where_the_events_go_on(
    start_gateway: StartGateway, start_worker: StartWorker, pool: str, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    script.add(prompt="hang", text="one two three", hang_after_tokens=2)
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))
    gateway = await start_gateway(drain_timeout_s=PATIENCE_S)
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.responses.create(model=pool, input="hang", background=True, stream=True)
        events = [event async for event in until_text(stream, "one two ")]
        stopping = asyncio.create_task(gateway.stop())
        with pytest.raises(openai.APIError) as told:
            await read(stream)
        await stopping

    assert told.value.code == "gateway_stopping"
    where = f"{events[0].response.id}?stream=true&starting_after={numbers(events)[-1]} "
    assert where in told.value.message


async def test_a_gateway_that_stops_forgets_what_is_not_stored(
    start_gateway: StartGateway,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    tmp_path: Path,
) -> None:
    script = Script(tmp_path)
    script.add(prompt="hang", text="one two three", hang_after_tokens=2)
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))
    gateway = await start_gateway(drain_timeout_s=0.01)
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.responses.create(model=pool, input="hang", store=False, stream=True)
        events = [event async for event in until_text(stream, "one two ")]
        stopping = asyncio.create_task(gateway.stop())
        with pytest.raises(openai.APIError) as told:
            await read(stream)
        await stopping

    assert told.value.message.endswith("send the request again")
    job_id = job_of(events[0].response)
    assert not await store.exists(result_key(job_id), journal_key(job_id))


async def test_a_response_of_another_tenant_is_unknown(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()

    def apis(tenant: str) -> tuple[ResponsesApi, ConversationsApi]:
        view = TenantFleet(fleet, f"{pool}.{tenant}")
        jobs = OpenAIApi(view, models=Models(fleet.workers, pool=pool))
        return ResponsesApi(view, jobs), ConversationsApi(view)

    async def created(api: ResponsesApi, **asked: Any) -> dict[str, Any]:
        reply = await api.create({}, orjson.dumps({"input": "hello", **asked}))
        assert isinstance(reply.content, bytes)
        return orjson.loads(reply.content)

    (mine, my_talks), (yours, your_talks) = apis("mine"), apis("yours")
    talk: Any = orjson.loads((await your_talks.create(b"{}")).content)  # type: ignore[arg-type]
    response = (await created(yours, conversation=talk["id"]))["id"]
    unknown = f"resp_{new_job_id()}"

    for use in (
        mine.get,
        partial(mine.events, starting_after=2),
        mine.cancel,
        mine.delete,
        mine.input_items,
        lambda each: created(mine, previous_response_id=each),
    ):
        told: list[Refusal] = []
        for each in (response, unknown):
            with pytest.raises(RefusedError) as refused:
                await use(each)
            told.append(refused.value.refusal)
        assert told[0] == replace(told[1], message=told[1].message.replace(unknown, response))
    for ask in (my_talks.get, my_talks.delete, my_talks.items, partial(my_talks.update, content=b"{}")):
        with pytest.raises(RefusedError) as refused:
            await ask(talk["id"])
        assert refused.value.refusal.code == "conversation_not_found"
    with pytest.raises(RefusedError) as refused:
        await created(mine, conversation=talk["id"])
    assert refused.value.refusal.code == "conversation_not_found"
    continued = await created(yours, previous_response_id=response)
    assert continued["status"] == "completed"


async def test_a_response_of_the_background_that_is_accepted_too_late_is_cancelled(
    fleet: Fleet, pool: str
) -> None:
    accepted = asyncio.Event()
    jobs: list[Job] = []

    class Slow(TenantFleet):
        async def submit(self, work: Any, **options: Any) -> Job:
            await accepted.wait()
            jobs.append(await super().submit(work, **options))
            return jobs[-1]

    view = Slow(fleet, "default")
    api = OpenAIApi(view, models=Models(fleet.workers, pool=pool), accept_s=0.01)
    responses = ResponsesApi(view, api)

    for stream in (False, True):
        with pytest.raises(RefusedError, match="it is cancelled"):
            await responses.create({}, orjson.dumps({"input": "x", "background": True, "stream": stream}))
    accepted.set()
    await api.aclose()

    # Nobody has learnt its id.
    assert [(await fleet.get(job)).state for job in jobs] == [JobState.CANCELLED] * 2


async def test_nothing_is_kept_of_a_response_that_is_refused_behind_its_clients_back(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    asked, full = asyncio.Event(), asyncio.Event()
    records: list[str] = []

    class Full(TenantFleet):
        async def submit(self, work: Any, **options: Any) -> Job:
            records.append(response_key(options["id"]))
            assert await store.exists(*records)
            asked.set()
            await full.wait()
            raise QueueFullError(pool)

    view = Full(fleet, "default")
    api = OpenAIApi(view, models=Models(fleet.workers, pool=pool))
    creating = asyncio.create_task(ResponsesApi(view, api).create({}, b'{"input": "x"}'))
    await asked.wait()
    creating.cancel()
    await asyncio.wait({creating})
    full.set()
    await api.aclose()

    assert not await store.exists(*records)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=true&starting_after=x", "starting_after"),
        ("stream=true&starting_after=-2", "starting_after"),
        ("starting_after=3", "starting_after"),
        ("stream=perhaps", "stream"),
        ("stream=true&include_obfuscation=true", "include_obfuscation"),
    ],
)
async def test_a_query_that_is_wrong_is_refused(start_gateway: StartGateway, query: str, param: str) -> None:
    async with httpx2.AsyncClient(base_url=(await start_gateway()).url, timeout=PATIENCE_S) as http:
        answer = await http.get(f"/v1/responses/resp_{new_job_id()}?{query}")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
