"""Requests whose jobs are accepted late, by nobody, or for pools without workers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.conftest import (
    StartGateway,
    StartWorker,
    chat,
    eventually,
)
from tests.integration.gateway.conftest import CHAT, Client, refused

from inferfleet.gateway import server, waiting
from inferfleet.producer import Fleet
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import PublishUnconfirmedError, ServiceUnreachableError


async def test_a_job_that_rabbitmq_did_not_confirm_is_cancelled_and_no_address_is_told(
    http: Client, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Publisher.publish
    published: list[str] = []

    async def unconfirmed(publisher: Publisher, job: Job, **options: Any) -> None:
        await publish(publisher, job, **options)
        published.append(job.id)
        raise PublishUnconfirmedError("the connection to amqp://guest@10.0.0.1 broke")

    monkeypatch.setattr(Publisher, "publish", unconfirmed)
    answer = await http.post(CHAT, json=chat())

    refused(answer, 503, "publish_unconfirmed")
    assert "10.0.0.1" not in answer.text

    async def is_cancelled() -> bool:
        return (await fleet.get(published[0])).state is JobState.CANCELLED

    await eventually(is_cancelled)


async def test_a_job_that_is_not_accepted_in_time_is_refused(
    fleet: Fleet, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asyncio.Event()

    async def hang(*_: Any, **__: Any) -> None:
        await answers.wait()
        raise ServiceUnreachableError("it does not answer")

    monkeypatch.setattr(Fleet, "submit", hang)
    monkeypatch.setattr(server, "ACCEPT_S", 0.1)
    async with Client(await start_gateway()) as http:
        for path, body in ((CHAT, chat()), (CHAT, chat(stream=True)), ("/v1/jobs", {"body": chat()})):
            refused(await http.post(path, json=body), 503, "service_unreachable")
    answers.set()


@pytest.mark.parametrize("hangs", ["workers", "submit"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_requests_timeout_also_limits_its_acceptance(
    fleet: Fleet, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, hangs: str, stream: bool
) -> None:
    answers = asyncio.Event()

    async def hang(*_: Any, **__: Any) -> None:
        await answers.wait()
        raise ServiceUnreachableError("it does not answer")

    monkeypatch.setattr(Fleet, hangs, hang)
    async with Client(await start_gateway()) as http:
        answer = await http.post(CHAT, json=chat(stream=stream), headers={"Inferfleet-Timeout": "0.1"})
    answers.set()

    refused(answer, 504, "timeout")


async def test_a_key_finds_its_job_when_no_worker_serves_the_model_any_more(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker()
    keyed = {"Idempotency-Key": pool}
    model = "simulated"

    async def is_served() -> bool:
        return any(each.pool == pool for each in await fleet.workers())

    await eventually(is_served)
    async with Client(await start_gateway()) as http:
        first = await http.post(CHAT, json=chat(model=model), headers=keyed)
        assert first.status_code == 200
    await worker.stop()

    async with Client(await start_gateway(refuse_without_workers=True)) as other:
        again = await other.post(CHAT, json=chat(model=model), headers=keyed)
        refused(await other.post(CHAT, json=chat("other"), headers=keyed), 409, "idempotency_conflict")

    assert again.headers["inferfleet-job"] == first.headers["inferfleet-job"], again.text
    assert again.json() == first.json()


async def test_a_pool_without_workers_accepts_and_says_so_or_refuses(
    http: Client, start_gateway: StartGateway, pool: str
) -> None:
    accepted = await http.post("/v1/jobs", json={"body": chat()})
    assert accepted.headers["inferfleet-workers"] == "0"

    async with Client(await start_gateway(refuse_without_workers=True)) as strict:
        refused(await strict.post("/v1/jobs", json={"body": chat()}), 503, "no_workers")
        refused(await strict.post(CHAT, json=chat()), 503, "no_workers")


async def test_a_model_without_workers_has_the_pool_that_the_settings_name(
    fleet: Fleet, start_gateway: StartGateway, pool: str
) -> None:
    async with Client(await start_gateway(model_pools={"org/cold": pool}, pool="other")) as http:
        accepted = await http.post("/v1/jobs", json={"body": chat(model="org/cold")})
        assert accepted.json()["pool"] == pool
        assert (await http.get("/v1/models/org/cold")).json()["workers"] == 0


async def test_a_stream_whose_job_waits_begins_with_comments(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FIRST_EVENT_S", 0.05)
    monkeypatch.setattr(waiting, "COMMENT_INTERVAL_S", 0.05)
    async with (
        Client(await start_gateway()) as http,
        http.stream("POST", CHAT, json=chat(stream=True)) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert await anext(lines) == ": waiting"
        await start_worker()
        told = [line async for line in lines if line.startswith("data: ")]

    assert told[-1] == "data: [DONE]"
    assert len(told) > 3
