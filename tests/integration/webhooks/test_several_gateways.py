"""Gateways that die, stop, or deliver together: each event comes, and once where it can."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    PATIENCE_S,
    StartGateway,
    WorkerProcess,
    chat,
    eventually,
    reader_of,
)
from tests.integration.receiver import Receiver, never, status
from tests.integration.webhooks.conftest import HERE, Hooks, LaterClock, Listed, added, delivering, read

from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.gateway.webhooks import delivery, webhooks
from inferfleet.gateway.webhooks.sending import Sender, Sent
from inferfleet.gateway.webhooks.webhooks import Webhooks
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis.webhooks import WatchedJob, WebhookStore


@asynccontextmanager
async def gateway_process(environment: dict[str, str], pool: str) -> AsyncIterator[tuple[WorkerProcess, str]]:
    """Run a gateway as a process; yield it and its address."""
    readable, writable = os.pipe()
    variables = {
        "INFERFLEET_WEBHOOK_NETWORKS": '["127.0.0.0/8"]',
        "INFERFLEET_WEBHOOK_TIMEOUT_S": "30",
    }
    with os.fdopen(writable, "wb") as stderr:
        arguments = ["gateway", "--http-port", "0", "--pool", pool]
        process = WorkerProcess(
            ForkedProcess(arguments, env={**environment, **variables}, stdout=stderr, stderr=stderr),
            await reader_of(readable),
        )
    try:
        serves = await process.logged("serving OpenAI's API on ")
        yield process, serves["message"].split()[-1].removesuffix("/v1")
    finally:
        await process.close()


async def test_a_gateway_killed_between_the_request_and_its_record_repeats_it_elsewhere(
    environment: dict[str, str],
    fleet: Fleet,
    pool: str,
    hooks: Hooks,
    receiver: Receiver,
    store: WebhookStore,
    clock: LaterClock,
    sender: Sender,
) -> None:
    receiver.answer = never
    endpoint_id, _ = await hooks.add(receiver)
    await hooks.gateway.stop()
    async with gateway_process(environment, pool) as (process, address):
        async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S) as http:
            job_id = (await http.post("/v1/jobs", json={"body": chat()})).json()["id"]
            await fleet.cancel(job_id)
            await receiver.take(1)
        process.signal(signal.SIGKILL)
        await process.ended()
    receiver.answer = status(200)
    clock.later_s = 300
    async with delivering(store, sender):
        first, second = await receiver.take(2)

        async def settled() -> bool:
            endpoint = await store.endpoint(endpoint_id)
            return endpoint is not None and endpoint.undelivered == 0

        await eventually(settled)
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == f"evt_{job_id}"


async def test_a_gateway_killed_before_the_end_of_a_job_leaves_it_to_another(
    environment: dict[str, str],
    fleet: Fleet,
    pool: str,
    hooks: Hooks,
    receiver: Receiver,
    store: WebhookStore,
    clock: LaterClock,
    sender: Sender,
) -> None:
    await hooks.add(receiver)
    await hooks.gateway.stop()
    async with gateway_process(environment, pool) as (process, address):
        async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S) as http:
            job_id = (await http.post("/v1/jobs", json={"body": chat()})).json()["id"]
        process.signal(signal.SIGKILL)
        await process.ended()
    await fleet.cancel(job_id)
    clock.later_s = 300
    async with delivering(store, sender):
        (received,) = await receiver.take(1)
    assert received.event["data"]["id"] == job_id


async def test_a_gateway_that_cannot_reach_rabbitmq_tells_what_another_one_has_accepted(
    hooks: Hooks,
    receiver: Receiver,
    fleet: Fleet,
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "LOOK_S", 0.1)
    await hooks.add(receiver)
    job_id = await hooks.submit()
    await hooks.gateway.stop()
    await fleet.cancel(job_id)
    await start_gateway(**HERE, amqp_url="amqp://127.0.0.1:1/")

    (received,) = await receiver.take(1)

    assert received.event["data"]["id"] == job_id


async def test_a_gateway_that_stops_waits_for_what_it_delivers(
    store: WebhookStore,
    tenant: str,
    receiver: Receiver,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "LAST_S", 0)
    stops = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        await stops.wait()
        await status(200)(writer)

    receiver.answer = answer
    endpoint_id = await added(store, tenant, receiver.url)
    settings = GatewaySettings(
        redis_url=services.redis_url, webhook_networks=["127.0.0.0/8"], webhook_timeout_s=30
    )
    async with Webhooks.running(settings, GatewayMetrics(CollectorRegistry())) as running:
        await running.tell(tenant, "batch.completed", "batch_1", datetime.now(UTC))
        await receiver.take(1)
        asyncio.get_running_loop().call_later(0.2, stops.set)
    assert (await read(store, endpoint_id)).undelivered == 0


async def test_a_gateway_that_stops_gives_back_what_it_has_claimed(
    store: WebhookStore,
    tenant: str,
    receiver: Receiver,
    services: Services,
    fleet: Fleet,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "LAST_S", 0)
    receiver.answer = never
    endpoint_id = await added(store, tenant, receiver.url)
    job = await fleet.submit(chat(), pool=pool)
    settings = GatewaySettings(
        redis_url=services.redis_url,
        webhook_networks=["127.0.0.0/8"],
        webhook_timeout_s=30,
        drain_timeout_s=0,
    )
    async with Webhooks.running(settings, GatewayMetrics(CollectorRegistry())) as running:
        await running.tell(tenant, "batch.completed", "batch_1", datetime.now(UTC))
        await receiver.take(1)
        await running.watch(tenant, [job.id])
        # Its end is heard of when nothing is told any more.
        running.delivery.stop()
        await fleet.cancel(job)
        running.delivery.heard([job.id])

    assert endpoint_id in await store.due_endpoints(limit=1000)
    (claimed,) = await store.claim(endpoint_id, for_ms=60_000, limit=1)
    assert (claimed.tried, claimed.event.object_id) == (0, "batch_1")
    assert job.id in [watched.job_id for watched in await store.claim_watched(for_ms=60_000, limit=1000)]
    await store.forget([WatchedJob("job", job.id, tenant)])


async def test_what_several_gateways_deliver_comes_once(
    store: WebhookStore, tenant: str, receiver: Receiver
) -> None:
    await added(store, tenant, receiver.url)
    async with AsyncExitStack() as stack:
        # On a busy machine an answer may take longer than most tests allow, and the event would come again.
        patient = Sender.opened(allowed=[ip_network("127.0.0.0/8")], timeout_s=PATIENCE_S)
        sender = await stack.enter_async_context(patient)
        gateways = [await stack.enter_async_context(delivering(store, sender)) for _ in range(3)]
        for number in range(100):
            await gateways[0].tell(tenant, WebhookEvent("job.succeeded", str(number), 1))
            for gateway in gateways:
                gateway.wake()
        received = await receiver.take(100)
    assert sorted(int(each.event["data"]["id"]) for each in received) == list(range(100))


async def test_a_delivery_that_no_gateway_has_begun_is_overdue(
    store: WebhookStore, clock: LaterClock, tenant: str
) -> None:
    class Stuck(Listed):
        async def send(self, *_: Any, **__: Any) -> Sent:
            return await asyncio.Event().wait() and self.outcome

    registry = CollectorRegistry()
    await added(store, tenant)

    async def is_overdue() -> bool:
        return (registry.get_sample_value("inferfleet_gateway_webhook_overdue_seconds") or 0) >= 30

    async with delivering(store, Stuck(clock), registry=registry) as deliverer:
        for number in range(delivery.PER_ENDPOINT):
            await deliverer.tell(tenant, WebhookEvent("job.succeeded", str(number), 1))
        assert not await is_overdue()
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "last", 1))
        clock.later_s += 30
        await eventually(is_overdue)


async def test_an_entry_that_is_claimed_by_several_in_one_millisecond_has_one_claimer(
    store: WebhookStore, clock: LaterClock, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint_id = await added(store, tenant)
    await store.enter(tenant, WebhookEvent("job.succeeded", "j", 1), most=10)
    now_ms = clock.now_ms() + 60_000
    monkeypatch.setattr(clock, "now_ms", lambda: now_ms)

    for _ in range(1000):
        # Claims that have ended when they begin, so that the next round finds the entry again.
        claims = (store.claim(endpoint_id, for_ms=-30_000, limit=1) for _ in range(3))
        assert sum(map(len, await asyncio.gather(*claims))) == 1
