"""How a gateway starts and stops."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from urllib.parse import urlsplit

import httpx2
import pytest
import redis.asyncio as aioredis
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    StartGateway,
    StartWorker,
    WorkerProcess,
    chat,
    reader_of,
    slow_chat,
    unfinished,
)
from tests.integration.gateway.conftest import CHAT, Client, read_events, refused, text_of

from inferfleet.producer import Fleet
from inferfleet.schemas import JobState
from inferfleet.schemas.errors import ConfigurationError


async def test_a_stopping_gateway_ends_streams_and_says_where_to_go_on(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker
) -> None:
    await start_worker()
    one, other = await start_gateway(), await start_gateway()
    body = slow_chat(tokens=100, step_s=0.02)
    async with Client(one) as http, Client(other) as later:
        async with http.stream("POST", CHAT, json={**body, "stream": True}) as answer:
            job_id = answer.headers["inferfleet-job"]
            lines = answer.aiter_lines()
            await anext(lines)
            begun = asyncio.Event()
            events = asyncio.create_task(read_events(http, f"/v1/jobs/{job_id}/events", begun=begun))
            async with asyncio.timeout(PATIENCE_S):
                await begun.wait()
                while not (await fleet.get(job_id)).tokens:
                    await asyncio.sleep(0.01)
            await one.stop()
            told = [line async for line in lines if line]

        error = json.loads(told[-2].removeprefix("data: "))["error"]
        assert error["code"] == "gateway_stopping"
        assert told[-1] == "data: [DONE]"
        *seen, resume = await events
        assert resume[1] == "resume"
        rest = await read_events(later, f"/v1/jobs/{job_id}/events", after=resume[2]["last_event_id"])

    result = await fleet.wait(job_id, timeout_s=PATIENCE_S)
    assert result.state is JobState.SUCCEEDED
    assert text_of(seen + rest) == result.text
    assert job_id in error["message"]


async def test_a_stopping_gateway_lets_its_requests_end(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    gateway = await start_gateway(drain_timeout_s=PATIENCE_S)
    async with Client(gateway) as http:
        asking = asyncio.create_task(http.post(CHAT, json=chat()))
        await unfinished(store, pool)
        stopping = asyncio.create_task(gateway.stop())
        await start_worker()

        assert (await asking).status_code == 200
        await stopping


async def test_a_waiting_request_is_told_to_come_again_and_its_job_is_cancelled(
    fleet: Fleet, start_gateway: StartGateway, store: aioredis.Redis, pool: str
) -> None:
    gateway = await start_gateway(drain_timeout_s=0.1)
    async with Client(gateway) as http:
        asking = asyncio.create_task(http.post(CHAT, json=chat()))
        (job_id,) = await unfinished(store, pool)
        await gateway.stop()

        answer = await asking
    refused(answer, 503, "gateway_stopping")
    assert (await fleet.get(job_id)).state is JobState.CANCELLED


async def test_the_command_serves_until_it_is_told_to_stop_and_logs_no_prompt(
    environment: dict[str, str], fleet: Fleet, pool: str
) -> None:
    readable, writable = os.pipe()
    with os.fdopen(writable, "wb") as stderr:
        arguments = ["gateway", "--http-port", "0", "--pool", pool]
        process = WorkerProcess(
            ForkedProcess(arguments, env=environment, stdout=stderr, stderr=stderr), await reader_of(readable)
        )
    try:
        serves = await process.logged("serving OpenAI's API on ")
        address = serves["message"].split()[-1].removesuffix("/v1")
        async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S) as http:
            accepted = await http.post("/v1/jobs", json={"body": chat("a secret")})
            asked = await http.get(f"{accepted.headers['location']}?wait=0&secret=1")
        assert asked.json()["pool"] == pool
        line = await process.logged("request")
        assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/jobs", 202)
        assert await process.stop() == 0
        assert "secret" not in process.log
    finally:
        await process.close()


async def test_only_loopback_is_anonymous_unless_that_is_allowed(
    inferfleet: RunCommand, environment: dict[str, str]
) -> None:
    anywhere = await inferfleet("gateway", "--http-host", "0.0.0.0", "--http-port", "0")

    assert anywhere.code == 2
    assert "INFERFLEET_ALLOW_ANONYMOUS" in anywhere.err


async def test_a_port_that_is_taken_is_said(fleet: Fleet, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        log_format="console", log_level="INFO", allow_anonymous=True, http_host="127.0.0.1"
    )

    with pytest.raises(ConfigurationError, match="cannot listen"):
        await start_gateway(http_port=urlsplit(gateway.url).port)


async def test_an_address_of_ipv6_is_written_in_brackets(fleet: Fleet, inferfleet: RunCommand) -> None:
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        port = str(taken.getsockname()[1])
        for which, other in (("HTTP", "METRICS"), ("METRICS", "HTTP")):
            variables = {f"INFERFLEET_{which}_HOST": "::1", f"INFERFLEET_{which}_PORT": port}
            variables[f"INFERFLEET_{other}_PORT"] = "0"
            ended = await inferfleet("gateway", environment=variables)
            assert (ended.code, f"cannot listen on [::1]:{port} (" in ended.err) == (2, True), ended.err
