"""Clients whose gateway is killed, and which continue with another one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorker,
    WorkerProcess,
    answer_to,
    chat,
    reader_of,
    slow_chat,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import JobState

CLIENTS = 24
TOKENS = 60
KILLED_BEHIND = 5
"""How many events the last of the clients has when their gateway is killed."""


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
        if len(self.ids) == KILLED_BEHIND:
            self.begun.set()


async def test_clients_of_a_killed_gateway_miss_nothing_on_another(
    gateways: list[Gateway], start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker(max_running=CLIENTS)
    one, other = gateways
    jobs = await fleet.submit_many(
        [slow_chat(str(number), tokens=TOKENS, step_s=0.05) for number in range(CLIENTS)],
        pool=pool,
        stream=True,
    )
    followers = [Follower(job.id) for job in jobs]
    following = [asyncio.create_task(follower.follow(one)) for follower in followers]

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(follower.begun.wait() for follower in followers))
    await one.kill()
    await asyncio.gather(*following)
    assert all(follower.broken for follower in followers)
    await asyncio.gather(*(follower.follow(other) for follower in followers))

    for job, follower in zip(jobs, followers, strict=True):
        journal = [line.id async for line in fleet.stream(job)]
        assert follower.ids == journal
        assert follower.text == answer_to(job)


async def test_an_answer_whose_gateway_is_killed_is_read_again_by_its_key(
    gateways: list[Gateway], start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    one, other = gateways
    request: dict[str, Any] = {
        "url": "/v1/chat/completions",
        "json": {**slow_chat(tokens=TOKENS, step_s=0.05), "stream": True},
        "headers": {"Idempotency-Key": pool},
    }

    async with one.http.stream("POST", **request) as answer:
        job_id = answer.headers["inferfleet-job"]
        lines = answer.aiter_lines()
        first = [await anext(lines) for _ in range(KILLED_BEHIND)]
        await one.kill()
        with pytest.raises(httpx2.TransportError):
            _ = [line async for line in lines]
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
