"""Clients whose gateway is killed, and which continue with another one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    INSTANT,
    PATIENCE_S,
    StartWorker,
    WorkerProcess,
    answer_to,
    chat,
    reader_of,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import JobState
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import Completion, Generation

CLIENTS = 24
TOKENS = 60
SEEN = 3
"""How many events each client has seen by then: its job is queued, runs, and has tokens."""


class Held(SimulatedEngine):
    """Goes on behind the first tokens of its answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(model="simulated", max_running=CLIENTS, engine_args=INSTANT)
        self.go_on = asyncio.Event()

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        async for event in super().generate(generation):
            yield event
            await self.go_on.wait()


class Gateway:
    """A gateway as a process of its own."""

    def __init__(self, process: WorkerProcess, url: str) -> None:
        self.process = process
        self.http = httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S)

    async def kill(self) -> None:
        self.process.signal(signal.SIGKILL)
        assert await self.process.ended() == -signal.SIGKILL


@asynccontextmanager
async def _gateway(environment: dict[str, str], pool: str) -> AsyncIterator[Gateway]:
    readable, writable = os.pipe()
    with os.fdopen(writable, "wb") as log:
        arguments = ["gateway", "--http-port", "0", "--pool", pool]
        process = WorkerProcess(
            ForkedProcess(arguments, env=environment, stdout=log, stderr=log), await reader_of(readable)
        )
    try:
        serves = await process.logged("serving OpenAI's API on ")
        gateway = Gateway(process, serves["message"].split()[-1].removesuffix("/v1"))
        async with gateway.http:
            yield gateway
    finally:
        await process.close()


def answer_of(tokens: int, content: str = "hello") -> dict[str, Any]:
    """A chat whose answer has so many tokens."""
    return chat(content, simulated={"tokens": tokens})


@pytest.fixture
async def gateways(environment: dict[str, str], fleet: Fleet, pool: str) -> AsyncIterator[list[Gateway]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(_gateway(environment, pool)) for _ in range(2)]


class Follower:
    """Reads the events of a job, and after a broken connection those that it has not seen."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.ids: list[str] = []
        self.text = ""
        self.broken = False
        self.begun = asyncio.Event()

    async def follow(self, gateway: Gateway) -> None:
        headers = {"Last-Event-ID": self.ids[-1]} if self.ids else {}
        url = f"/v1/jobs/{self.job_id}/events"
        try:
            async with gateway.http.stream("GET", url, headers=headers) as answer:
                assert answer.status_code == 200, await answer.aread()
                # An event is complete with the empty line behind it, as browsers have it.
                fields: dict[str, str] = {}
                async for line in answer.aiter_lines():
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    if not line:
                        self._take(fields)
                        fields = {}
        except httpx2.TransportError:
            self.broken = True

    def _take(self, fields: dict[str, str]) -> None:
        if "id" not in fields:
            return
        self.ids.append(fields["id"])
        entry: dict[str, Any] = json.loads(fields["data"])
        self.text += "".join(chunk["text"] for chunk in entry.get("chunks", ()))
        if len(self.ids) == SEEN:
            self.begun.set()


async def test_clients_of_a_killed_gateway_miss_nothing_on_another(
    gateways: list[Gateway], start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    engine = Held()
    await start_worker(engine, max_running=CLIENTS)
    one, other = gateways
    jobs = await fleet.submit_many(
        [answer_of(TOKENS, str(number)) for number in range(CLIENTS)], pool=pool, stream=True
    )
    followers = [Follower(job.id) for job in jobs]
    following = [asyncio.create_task(follower.follow(one)) for follower in followers]

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(follower.begun.wait() for follower in followers))
    await one.kill()
    await asyncio.gather(*following)
    assert all(follower.broken for follower in followers)
    engine.go_on.set()
    await asyncio.gather(*(follower.follow(other) for follower in followers))

    for job, follower in zip(jobs, followers, strict=True):
        journal = [line.id async for line in fleet.stream(job)]
        assert follower.ids == journal
        assert follower.text == answer_to(job)


async def test_an_answer_whose_gateway_is_killed_is_read_again_by_its_key(
    gateways: list[Gateway], start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    engine = Held()
    await start_worker(engine)
    one, other = gateways
    request: dict[str, Any] = {
        "url": "/v1/chat/completions",
        "json": {**answer_of(TOKENS), "stream": True},
        "headers": {"Idempotency-Key": pool},
    }

    async with one.http.stream("POST", **request) as answer:
        job_id = answer.headers["inferfleet-job"]
        lines = answer.aiter_lines()
        first = [await anext(lines) for _ in range(SEEN)]
        await one.kill()
        with pytest.raises(httpx2.TransportError):
            _ = [line async for line in lines]
    engine.go_on.set()
    again = await other.http.post(**request)

    assert again.headers["inferfleet-job"] == job_id
    assert again.text.splitlines()[: len(first)] == first
    assert again.text.endswith("data: [DONE]\n\n")
    assert (await fleet.get(job_id)).attempts == 1


async def test_a_job_whose_gateway_is_killed_goes_on(
    gateways: list[Gateway], start_worker: StartWorker, fleet: Fleet
) -> None:
    one, other = gateways
    accepted = await one.http.post("/v1/jobs", json={"body": chat()})
    await one.kill()
    await start_worker()

    record = (await other.http.get(accepted.headers["location"], params={"wait": PATIENCE_S})).json()

    assert record["state"] == JobState.SUCCEEDED
