"""Webhooks as whoever receives them sees them, on real services."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_network
from typing import Any, cast
from uuid import uuid4

import httpx2
import pytest
import standardwebhooks
from openai import AsyncOpenAI, InvalidWebhookSignatureError
from prometheus_client import CollectorRegistry
from tests.forked import ForkedProcess
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartGateway,
    StartWorker,
    WorkerProcess,
    chat,
    eventually,
    reader_of,
    slow_chat,
)
from tests.integration.receiver import Receiver, endless, never, receiving, status

from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.gateway.webhooks import delivery, webhooks
from inferfleet.gateway.webhooks.delivery import RETRY_AFTER_S, Delivery
from inferfleet.gateway.webhooks.kinds import RESPONSE
from inferfleet.gateway.webhooks.sending import Sender, Sent
from inferfleet.gateway.webhooks.signing import new_secret
from inferfleet.gateway.webhooks.webhooks import Webhooks
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import PublishUnconfirmedError, ServiceRefusedError
from inferfleet.schemas.names import (
    WEBHOOK_WATCHED_KEY,
    job_key,
    result_key,
    webhook_due_key,
    webhook_events_key,
)
from inferfleet.schemas.webhooks import EVENT_TYPES, WebhookEvent
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.webhooks import Claimed, Settled, WatchedJob, WebhookEndpoint, WebhookStore
from inferfleet.wire.tasks import cancel_and_wait

HERE: dict[str, Any] = {
    "webhook_networks": ["127.0.0.0/8"],
    "webhook_timeout_s": 2,
    "webhook_max_undelivered": 1000,
}
"""Settings of a gateway that may reach endpoints on this machine."""

ALL = list(EVENT_TYPES)


class Hooks:
    """Endpoints through one gateway, by OpenAI's SDK."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.gateway = gateway
        self.http = httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S)
        self.openai = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)

    async def add(self, receiver: Receiver, *event_types: str) -> tuple[str, str]:
        """Add an endpoint; returns its id and its secret."""
        added = await self.openai.webhooks.create(
            name="test", url=receiver.url, event_types=list(event_types or EVENT_TYPES)
        )
        return added.id, added.signing_secret

    async def read(self, endpoint_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/v1/webhook_endpoints/{endpoint_id}")
        described: dict[str, Any] = answer.json()
        return described

    async def submit(self, body: dict[str, Any] | None = None) -> str:
        accepted = await self.http.post("/v1/jobs", json={"body": body or chat()})
        assert accepted.status_code == 202, accepted.text
        return str(accepted.json()["id"])

    async def close(self) -> None:
        await self.openai.close()
        await self.http.aclose()


@pytest.fixture
async def hooks(fleet: Fleet, start_gateway: StartGateway, store: WebhookStore) -> AsyncIterator[Hooks]:
    """Endpoints of a test, which are gone after it, because every gateway delivers for all."""
    hooks = Hooks(await start_gateway(**HERE))
    yield hooks
    await hooks.close()
    for endpoint in await store.endpoints("default"):
        await store.remove("default", endpoint.id)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


# What is told


async def test_the_end_of_a_job_is_told_and_signed(
    hooks: Hooks, receiver: Receiver, start_worker: StartWorker, fleet: Fleet
) -> None:
    _, secret = await hooks.add(receiver)
    await start_worker()
    job_id = await hooks.submit()

    (received,) = await receiver.take(1)

    finished = (await fleet.get(job_id)).finished_at
    assert finished is not None
    assert received.event == {
        "id": f"evt_{job_id}",
        "type": "job.succeeded",
        "created_at": int(finished.timestamp()),
        "data": {"id": job_id},
    }
    assert received.headers["webhook-id"] == f"evt_{job_id}"
    assert standardwebhooks.Webhook(secret).verify(received.body, received.headers) == received.event
    unwrapped = hooks.openai.webhooks.unwrap(received.body, received.headers, secret=secret)
    assert (unwrapped.type, unwrapped.data.id) == ("job.succeeded", job_id)
    with pytest.raises(InvalidWebhookSignatureError):
        hooks.openai.webhooks.unwrap(received.body + b" ", received.headers, secret=secret)


async def test_each_way_to_end_has_its_event(
    hooks: Hooks, receiver: Receiver, start_worker: StartWorker
) -> None:
    await hooks.add(receiver)
    cancelled = await hooks.submit()
    await hooks.http.delete(f"/v1/jobs/{cancelled}")
    await receiver.take(1)
    past = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
    expired = (await hooks.http.post("/v1/jobs", json={"body": chat(), "expires_at": past})).json()["id"]
    await asyncio.sleep(0.3)
    await start_worker()
    failed = await hooks.submit(chat(simulated={"fail": "invalid"}))

    received = await receiver.take(3)

    assert {each.event["data"]["id"]: each.event["type"] for each in received} == {
        cancelled: "job.cancelled",
        expired: "job.expired",
        failed: "job.failed",
    }


async def test_each_job_of_an_array_is_told(
    hooks: Hooks, receiver: Receiver, start_worker: StartWorker
) -> None:
    await hooks.add(receiver)
    await start_worker()
    jobs = [{"body": chat(str(number))} for number in range(50)]
    accepted = (await hooks.http.post("/v1/jobs", json=jobs)).json()

    received = await receiver.take(50)

    assert {each.event["data"]["id"] for each in received} == {job["id"] for job in accepted}
    assert len(received) == 50


async def test_an_endpoint_gets_the_types_that_it_wants_and_only_those(
    hooks: Hooks, receiver: Receiver, start_worker: StartWorker
) -> None:
    async with receiving() as other:
        await hooks.add(receiver, "job.cancelled", "response.completed")
        await hooks.add(other, "job.succeeded")
        await start_worker()
        await hooks.submit()
        (succeeded,) = await other.take(1)
        await hooks.submit(slow_chat(tokens=1000, step_s=0.05))
        job_id = await hooks.submit(slow_chat(tokens=1000, step_s=0.05))
        await hooks.http.delete(f"/v1/jobs/{job_id}")
        (cancelled,) = await receiver.take(1)
    assert succeeded.event["type"] == "job.succeeded"
    assert cancelled.event["type"] == "job.cancelled"


# Secrets


async def test_while_a_secret_is_rotated_both_sign(hooks: Hooks, receiver: Receiver) -> None:
    endpoint_id, old = await hooks.add(receiver)
    rotated = await hooks.openai.webhooks.rotate_secret(endpoint_id, keep_old_secret_active_for_24_hours=True)
    new = rotated.signing_secret
    await hooks.http.delete(f"/v1/jobs/{await hooks.submit()}")
    (received,) = await receiver.take(1)
    assert len(received.headers["webhook-signature"].split()) == 2
    for secret in (old, new):
        standardwebhooks.Webhook(secret).verify(received.body, received.headers)
        hooks.openai.webhooks.unwrap(received.body, received.headers, secret=secret)

    last = await hooks.openai.webhooks.rotate_secret(endpoint_id)
    await hooks.http.delete(f"/v1/jobs/{await hooks.submit()}")
    *_, received = await receiver.take(2)
    standardwebhooks.Webhook(last.signing_secret).verify(received.body, received.headers)
    for secret in (old, new):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(secret).verify(received.body, received.headers)


# Endpoints


async def test_endpoints_are_managed_by_openais_sdk(hooks: Hooks, receiver: Receiver) -> None:
    openai = hooks.openai.webhooks
    assert (await openai.event_types.list()).data == ALL
    endpoint_id, secret = await hooks.add(receiver, "job.failed")
    second_id, _ = await hooks.add(receiver)

    described = await openai.retrieve(endpoint_id)
    assert (described.url, described.event_types) == (receiver.url, ["job.failed"])
    assert secret not in described.model_dump_json()
    assert [each.id async for each in openai.list(limit=1)] == [second_id, endpoint_id]
    changed = await openai.update(endpoint_id, name="other", event_types=["batch.completed"])
    assert (changed.name, changed.event_types) == ("other", ["batch.completed"])
    tested = await openai.test(endpoint_id, event_type="batch.completed")
    (received,) = await receiver.take(1)
    assert (tested.status_code, received.event["type"]) == (200, "batch.completed")
    assert hooks.openai.webhooks.unwrap(received.body, received.headers, secret=secret)
    assert (await openai.delete(endpoint_id)).deleted
    assert (await hooks.http.get(f"/v1/webhook_endpoints/{endpoint_id}")).status_code == 404
    assert (await hooks.http.delete(f"/v1/webhook_endpoints/{endpoint_id}")).status_code == 404


async def test_an_invalid_endpoint_is_refused(hooks: Hooks, receiver: Receiver) -> None:
    good = {"name": "n", "url": receiver.url, "event_types": ["job.failed"]}
    for wrong, param in (
        ({"url": "https://user:pw@example.com/"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://[::1]/"}, "url"),
        ({"url": "https://[fd00::1]/"}, "url"),
        ({"url": "http://8.8.8.8/"}, "url"),
        ({"url": "https://nowhere.invalid/"}, "url"),
        ({"url": "ftp://127.0.0.1/"}, "url"),
        ({"url": 7}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["job.done"]}, "event_types"),
        ({"event_types": [["job.failed"]]}, "event_types"),
        ({"event_types": "job.failed"}, "event_types"),
        ({"name": ""}, "name"),
        ({"name": "n" * 200}, "name"),
        ({"secret": "x"}, "secret"),
    ):
        answer = await hooks.http.post("/v1/webhook_endpoints", json={**good, **wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    for endpoint_id in ("we_1", f"we_{'0' * 32}", f"we_{'0' * 32}:events", "queue"):
        assert (await hooks.http.get(f"/v1/webhook_endpoints/{endpoint_id}")).status_code == 404
        assert (
            await hooks.http.post(f"/v1/webhook_endpoints/{endpoint_id}/rotate_secret", json={})
        ).status_code == 404
    for _ in range(16):
        await hooks.add(receiver)
    assert (await hooks.http.post("/v1/webhook_endpoints", json=good)).status_code == 409


# Endpoints that do not accept


@pytest.mark.parametrize("code", [500, 404, 302, 304])
async def test_what_is_not_accepted_is_tried_again(
    hooks: Hooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(delivery, "RETRY_AFTER_S", (0.01,) * 9)
    async with receiving() as elsewhere:
        receiver.answer = status(code, f"location: {elsewhere.url}")
        endpoint_id, _ = await hooks.add(receiver)
        await hooks.http.delete(f"/v1/jobs/{await hooks.submit()}")
        await receiver.take(2)
        described = await hooks.read(endpoint_id)
        receiver.answer = status(204)

        await eventually(lambda: _accepted_all(hooks, endpoint_id))

        assert elsewhere.received == []
    assert described["failure"] == f"it answers {code}"
    assert described["failing_since"]
    assert len({each.headers["webhook-id"] for each in receiver.received}) == 1
    assert (await hooks.read(endpoint_id))["failure"] is None


async def _accepted_all(hooks: Hooks, endpoint_id: str) -> bool:
    return (await hooks.read(endpoint_id))["undelivered"] == 0


async def test_a_body_without_end_is_not_read(hooks: Hooks, receiver: Receiver) -> None:
    receiver.answer = endless
    endpoint_id, _ = await hooks.add(receiver)
    await hooks.http.delete(f"/v1/jobs/{await hooks.submit()}")
    await receiver.take(1)

    await eventually(lambda: _accepted_all(hooks, endpoint_id))

    assert len(receiver.received) == 1


async def test_an_endpoint_that_hangs_does_not_hold_up_another(hooks: Hooks, receiver: Receiver) -> None:
    async with receiving() as hanging:
        hanging.answer = never
        endpoint_id, _ = await hooks.add(hanging)
        await hooks.add(receiver)
        for _ in range(20):
            await hooks.http.delete(f"/v1/jobs/{await hooks.submit()}")

        await receiver.take(20)

        async def fails() -> bool:
            return (await hooks.read(endpoint_id))["failure"] == "it takes too long"

        await eventually(fails)


# Deaths


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


class LaterClock(RedisClock):
    """Redis' time, and as much later as a test says."""

    def __init__(self, own: RedisClock) -> None:
        self._own = own
        self.later_s = 0.0

    def now(self) -> datetime:
        return self._own.now() + timedelta(seconds=self.later_s)

    def now_ms(self) -> int:
        return self._own.now_ms() + int(self.later_s * 1000)


@asynccontextmanager
async def delivering(
    store: WebhookStore, sender: Sender, *, registry: CollectorRegistry | None = None
) -> AsyncIterator[Delivery]:
    """Deliver as a gateway does, by the store's clock."""
    metrics = GatewayMetrics(registry or CollectorRegistry())
    deliverer = Delivery(store, sender, metrics, timeout_s=5, max_undelivered=100)
    running = asyncio.create_task(deliverer.run())
    try:
        yield deliverer
    finally:
        await cancel_and_wait(running)


def counted(registry: CollectorRegistry, metric: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"inferfleet_gateway_webhook_{metric}_total", labels)


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender.opened(allowed=[ip_network("127.0.0.0/8")], timeout_s=5) as sender:
        yield sender


@pytest.fixture
def clock(pipeline: CommandPipeline) -> LaterClock:
    return LaterClock(pipeline.clock)


@pytest.fixture
def store(pipeline: CommandPipeline, clock: LaterClock) -> WebhookStore:
    return WebhookStore(pipeline, clock=clock)


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


# Days, by a clock that the test sets


class Listed(Sender):
    """Sends nothing: notes when something would be sent, and says how it ends."""

    def __init__(self, clock: LaterClock) -> None:
        super().__init__(sessions={}, resolver=cast("Any", None), allowed=())
        self.sent_s: asyncio.Queue[float] = asyncio.Queue()
        self.outcome = Sent(500, "it answers 500")
        self.clock = clock

    async def send(self, url: str, *, headers: Mapping[str, str], body: bytes, tenant: str) -> Sent:
        self.sent_s.put_nowait(self.clock.later_s)
        return self.outcome


@pytest.fixture
async def tenant(store: WebhookStore) -> AsyncIterator[str]:
    """A tenant of the test's own, whose endpoints are gone after it."""
    tenant = f"tenant {uuid4()}"
    yield tenant
    for endpoint in await store.endpoints(tenant):
        await store.remove(tenant, endpoint.id)


async def added(store: WebhookStore, tenant: str, url: str = "http://127.0.0.1:9/") -> str:
    now_ms = store.clock.now_ms()
    endpoint = WebhookEndpoint(
        id=f"we_{uuid4().hex}",
        tenant=tenant,
        name="n",
        url=url,
        event_types=EVENT_TYPES,
        secret=new_secret(),
        created_ms=now_ms,
        updated_ms=now_ms,
    )
    assert await store.add(endpoint)
    return endpoint.id


async def read(store: WebhookStore, endpoint_id: str) -> WebhookEndpoint:
    endpoint = await store.endpoint(endpoint_id)
    assert endpoint is not None
    return endpoint


class Endpoint:
    """An endpoint whose tries fail or not, by a clock that the test sets."""

    def __init__(self, endpoint_id: str, sends: Listed, deliverer: Delivery, store: WebhookStore) -> None:
        self.id = endpoint_id
        self._sends = sends
        self._deliverer = deliverer
        self._store = store

    async def tried(self, outcome: Sent | None = None) -> float:
        """Wait for a try and until it is recorded. Return when it came, after how many seconds."""
        self._sends.outcome = outcome or Sent(500, "it answers 500")
        self._deliverer.wake()
        at_s = await asyncio.wait_for(self._sends.sent_s.get(), PATIENCE_S)
        await eventually(self._nothing_under_way)
        return at_s

    async def _nothing_under_way(self) -> bool:
        return not self._deliverer._under_way

    async def fails(self, times: int) -> list[float]:
        """Let so many tries fail, each as soon as it is due. Return when they came."""
        tried_s: list[float] = []
        for number in range(times):
            tried_s.append(await self.tried())
            if number < times - 1:
                self._sends.clock.later_s += RETRY_AFTER_S[number] * 0.99
                assert self.id not in await self._store.due_endpoints(limit=100)
                self._sends.clock.later_s += RETRY_AFTER_S[number] * 0.3
        return tried_s


async def test_an_event_is_tried_for_three_days_and_then_its_endpoint_is_disabled_and_says_so(
    store: WebhookStore, clock: LaterClock, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    sends, registry = Listed(clock), CollectorRegistry()
    async with delivering(store, sends, registry=registry) as deliverer:
        endpoint = Endpoint(await added(store, tenant), sends, deliverer, store)
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "first", 1))

        tried_s = await endpoint.fails(len(RETRY_AFTER_S) + 1)

        assert tried_s[-1] >= 72 * 3600
        described = await read(store, endpoint.id)
        assert described.disabled_ms
        assert described.failure == "it answers 500"
        said = [record.getMessage() for record in caplog.records if endpoint.id in record.getMessage()]
        assert [text for text in said if "is disabled" in text]
        assert [text for text in said if "is given up" in text]

        # It gets nothing more, until it is enabled again.
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "second", 1))
        assert (await read(store, endpoint.id)).undelivered == 0
        assert await store.change(tenant, endpoint.id, {}, enabled=True)
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "third", 1))
        await endpoint.tried(Sent(200, ""))
    described = await read(store, endpoint.id)
    assert (described.disabled_ms, described.failure, described.undelivered) == (0, "", 0)
    assert counted(registry, "deliveries", outcome="failed") == len(RETRY_AFTER_S) + 1
    assert counted(registry, "deliveries", outcome="accepted") == 1
    assert counted(registry, "events_dropped", reason="given_up") == 1
    assert counted(registry, "endpoints_disabled") == 1


async def test_an_endpoint_that_accepts_something_in_between_stays_enabled(
    store: WebhookStore, clock: LaterClock, tenant: str
) -> None:
    sends = Listed(clock)
    async with delivering(store, sends) as deliverer:
        endpoint = Endpoint(await added(store, tenant), sends, deliverer, store)
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "never accepted", 1))
        await endpoint.fails(len(RETRY_AFTER_S))
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "accepted", 1))
        await endpoint.tried(Sent(200, ""))
        clock.later_s += 30 * 3600

        await endpoint.tried()

        described = await read(store, endpoint.id)
        assert (described.undelivered, described.disabled_ms) == (0, 0)

        # What was given up does not count: days later, one failure is the first.
        assert (described.failing_ms, described.failure) == (0, "")
        clock.later_s += 10 * 24 * 3600
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "another", 1))
        await endpoint.tried()
    described = await read(store, endpoint.id)
    assert (described.undelivered, described.disabled_ms) == (1, 0)


async def test_what_waits_for_a_disabled_endpoint_goes_on_when_it_is_enabled(
    store: WebhookStore, clock: LaterClock, tenant: str
) -> None:
    sends = Listed(clock)
    async with delivering(store, sends) as deliverer:
        endpoint = Endpoint(await added(store, tenant), sends, deliverer, store)
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "first", 1))
        await endpoint.tried()
        # As Standard Webhooks have it, this status says that the endpoint wants no more.
        clock.later_s += 10
        await endpoint.tried(Sent(410, "it answers 410"))
        assert (await read(store, endpoint.id)).disabled_ms
        clock.later_s += 24 * 3600
        assert not await store.due_endpoints(limit=100)

        assert await store.change(tenant, endpoint.id, {}, enabled=True)
        await endpoint.tried(Sent(200, ""))
    assert (await read(store, endpoint.id)).undelivered == 0


async def test_what_a_disabled_endpoint_has_not_accepted_is_dropped_in_the_end(
    store: WebhookStore,
    clock: LaterClock,
    tenant: str,
    pipeline: CommandPipeline,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sends, registry = Listed(clock), CollectorRegistry()
    async with delivering(store, sends, registry=registry) as deliverer:
        endpoint = Endpoint(await added(store, tenant), sends, deliverer, store)
        for number in range(10):
            await deliverer.tell(tenant, WebhookEvent("job.succeeded", str(number), 1))
        await store.change(tenant, endpoint.id, {}, enabled=False)
        clock.later_s += 29 * 24 * 3600
        assert endpoint.id not in await store.due_endpoints(limit=100)
        assert (await read(store, endpoint.id)).undelivered == 10

        clock.later_s += 24 * 3600
        deliverer.wake()

        async def dropped() -> bool:
            return (await read(store, endpoint.id)).undelivered == 0

        await eventually(dropped)
    keys = (webhook_events_key(endpoint.id), webhook_due_key(endpoint.id))
    assert await pipeline.execute("EXISTS", *keys) == 0
    assert endpoint.id not in await store.due_endpoints(limit=100)
    assert (await read(store, endpoint.id)).disabled_ms
    assert counted(registry, "events_dropped", reason="expired") == 10
    assert f"10 events for endpoint {endpoint.id} of tenant {tenant} are dropped" in caplog.text


# Tenants


async def test_a_tenant_is_told_of_its_own_and_sees_only_its_own(
    store: WebhookStore, clock: LaterClock, tenant: str, sender: Sender, receiver: Receiver
) -> None:
    other = "another " + tenant
    async with receiving() as others:
        endpoint_id = await added(store, tenant, receiver.url)
        other_id = await added(store, other, others.url)
        async with delivering(store, sender) as deliverer:
            await deliverer.tell(tenant, WebhookEvent("job.succeeded", "mine", 1))
            await deliverer.tell(other, WebhookEvent("job.succeeded", "theirs", 1))
            (mine,), (theirs,) = await receiver.take(1), await others.take(1)
        assert (mine.event["data"]["id"], theirs.event["data"]["id"]) == ("mine", "theirs")
        assert [each.id for each in await store.endpoints(tenant)] == [endpoint_id]
        assert not await store.change(tenant, other_id, {"url": "http://127.0.0.1:9/"})
        assert not await store.remove(tenant, other_id)
        assert (await read(store, other_id)).url == others.url
        await store.remove(other, other_id)


async def test_without_an_endpoint_nothing_is_watched(store: WebhookStore, tenant: str) -> None:
    job = WatchedJob("job", "j", tenant)
    assert not await store.watch([job])
    endpoint_id = await added(store, tenant)
    assert await store.watch([job])
    await store.forget([job])
    await store.remove(tenant, endpoint_id)
    assert not await store.watch([job])


async def test_a_response_is_told_by_openais_names(
    hooks: Hooks, receiver: Receiver, store: WebhookStore, fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    _, secret = await hooks.add(receiver)
    jobs = {
        "completed": await fleet.submit(chat(), pool=pool),
        "incomplete": await fleet.submit(chat(max_tokens=1), pool=pool),
        "failed": await fleet.submit(chat(simulated={"fail": "invalid"}), pool=pool),
        "cancelled": await fleet.submit(chat(), pool=pool),
    }
    await fleet.cancel(jobs["cancelled"])
    await start_worker()
    await fleet.wait_many(list(jobs.values()), timeout_s=PATIENCE_S)
    assert await store.watch([WatchedJob(RESPONSE, job.id, "default") for job in jobs.values()])

    received = await receiver.take(4)

    told = [hooks.openai.webhooks.unwrap(each.body, each.headers, secret=secret) for each in received]
    assert {event.type: event.to_dict()["data"] for event in told} == {
        f"response.{status}": {"id": f"resp_{job.id}"} for status, job in jobs.items()
    }
    assert {type(event).__name__ for event in told} == {
        f"Response{status.capitalize()}WebhookEvent" for status in jobs
    }


async def test_the_end_of_a_background_response_is_told(
    hooks: Hooks, receiver: Receiver, start_worker: StartWorker, pool: str
) -> None:
    _, secret = await hooks.add(receiver)
    await start_worker()
    responses = hooks.openai.responses
    made = [await responses.create(model=pool, input="hi", background=True)]
    async with await responses.create(model=pool, input="you", background=True, stream=True) as events:
        made += [event.response async for event in events if event.type == "response.completed"]
    waiting = await responses.create(model=pool, input="hello")

    received = await receiver.take(2)

    told = [hooks.openai.webhooks.unwrap(each.body, each.headers, secret=secret) for each in received]
    assert {event.type for event in told} == {"response.completed"}
    assert {each.event["data"]["id"] for each in received} == {response.id for response in made}
    assert waiting.id not in {each.event["data"]["id"] for each in received}


async def test_an_end_that_cannot_be_read_holds_up_no_other(
    hooks: Hooks, receiver: Receiver, store: WebhookStore, fleet: Fleet, pipeline: CommandPipeline, pool: str
) -> None:
    await hooks.add(receiver)
    unreadable, good = [await fleet.submit(chat(), pool=pool) for _ in range(2)]
    for job in (unreadable, good):
        await fleet.cancel(job)
    await pipeline.execute("HSET", job_key(unreadable.id), "state", "succeeded")
    await pipeline.execute("SET", result_key(unreadable.id), "{}", "EX", 600)
    watched = [WatchedJob(RESPONSE, job.id, "default") for job in (unreadable, good)]
    assert await store.watch(watched)

    (received,) = await receiver.take(1)

    assert received.event["data"]["id"] == f"resp_{good.id}"
    await store.forget(watched)


async def test_what_cannot_be_read_holds_up_no_other_job_and_tells_nothing_twice(
    store: WebhookStore,
    tenant: str,
    sender: Sender,
    receiver: Receiver,
    pipeline: CommandPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "LOOK_S", 0.1)
    await added(store, tenant, receiver.url)
    of_newer, of_other_type, first, second = [WatchedJob("job", str(uuid4()), tenant) for _ in range(4)]
    ended = ("state", "succeeded", "finished_at", 1)
    await pipeline.execute("HSET", job_key(of_newer.job_id), "state", "paused")
    await pipeline.execute("SET", job_key(of_other_type.job_id), "")
    await pipeline.execute("HSET", job_key(first.job_id), *ended)
    await pipeline.execute("HSET", job_key(second.job_id), "state", "running")
    jobs = [of_newer, of_other_type, first, second]
    nonsense = f"nonsense{uuid4()}"
    await pipeline.execute("ZADD", WEBHOOK_WATCHED_KEY, 0, nonsense)
    try:
        assert await store.watch(jobs)
        async with delivering(store, sender):
            await receiver.take(1)
            await pipeline.execute("HSET", job_key(second.job_id), *ended)
            received = await receiver.take(2)
    finally:
        await store.forget(jobs)
        await pipeline.execute("ZREM", WEBHOOK_WATCHED_KEY, nonsense)
        for job in jobs:
            await pipeline.execute("DEL", job_key(job.job_id))
    assert [each.event["data"]["id"] for each in received] == [first.job_id, second.job_id]


async def test_an_event_that_cannot_be_read_holds_up_no_other(
    store: WebhookStore, tenant: str, sender: Sender, receiver: Receiver, pipeline: CommandPipeline
) -> None:
    endpoint_id = await added(store, tenant, receiver.url)
    await pipeline.execute("HSET", webhook_events_key(endpoint_id), "evt_newer", "2:another form")
    await pipeline.execute("ZADD", webhook_due_key(endpoint_id), 0, "evt_newer")
    async with delivering(store, sender) as deliverer:
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", "good", 1))
        (received,) = await receiver.take(1)
    assert received.event["data"]["id"] == "good"


async def test_a_job_without_a_record_is_looked_at_until_nobody_makes_it_again(
    store: WebhookStore,
    tenant: str,
    sender: Sender,
    receiver: Receiver,
    pipeline: CommandPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "LOOK_S", 0.1)
    await added(store, tenant, receiver.url)
    made_again, lost = [WatchedJob("job", str(uuid4()), tenant) for _ in range(2)]

    async def looked_at() -> bool:
        return await pipeline.execute("ZSCORE", WEBHOOK_WATCHED_KEY, made_again.member) != first

    async def forgotten() -> bool:
        return await pipeline.execute("ZSCORE", WEBHOOK_WATCHED_KEY, lost.member) is None

    assert await store.watch([made_again])
    first = await pipeline.execute("ZSCORE", WEBHOOK_WATCHED_KEY, made_again.member)
    async with delivering(store, sender):
        await eventually(looked_at)
        await pipeline.execute("HSET", job_key(made_again.job_id), "state", "succeeded", "finished_at", 1)
        (received,) = await receiver.take(1)
        assert received.event["data"]["id"] == made_again.job_id

        monkeypatch.setattr(delivery, "MISSING_S", 0)
        assert await store.watch([lost])
        await eventually(forgotten)
    await pipeline.execute("DEL", job_key(made_again.job_id))


async def test_what_is_watched_and_told_is_on_as_many_replicas_as_are_demanded(
    store: WebhookStore, tenant: str, services: Services
) -> None:
    await added(store, tenant)
    demanding = GatewaySettings(
        redis_url=services.redis_url, redis_wait_replicas=99, redis_wait_timeout_ms=50, patience_s=0
    )
    job = WatchedJob("job", str(uuid4()), tenant)
    async with Webhooks.running(demanding, GatewayMetrics(CollectorRegistry())) as running:
        with pytest.raises(PublishUnconfirmedError, match="replicas"):
            await running.watch(tenant, [job.job_id])
        with pytest.raises(ServiceRefusedError, match="replicas"):
            await running.tell(tenant, "batch.completed", "batch_1", datetime.now(UTC))
    await store.forget([job])


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


async def test_only_what_differs_is_an_update(store: WebhookStore, clock: LaterClock, tenant: str) -> None:
    endpoint_id = await added(store, tenant)
    made_ms = (await read(store, endpoint_id)).updated_ms
    clock.later_s = 1
    for fields, enabled in (({}, None), ({"name": "n"}, None), ({"name": "n"}, True)):
        assert await store.change(tenant, endpoint_id, fields, enabled=enabled)
        assert (await read(store, endpoint_id)).updated_ms == made_ms
    for fields, enabled in (({}, False), ({"name": "n", "url": "http://127.0.0.1:8/"}, None), ({}, True)):
        before_ms = (await read(store, endpoint_id)).updated_ms
        clock.later_s += 1
        assert await store.change(tenant, endpoint_id, fields, enabled=enabled)
        assert (await read(store, endpoint_id)).updated_ms > before_ms


# Commands that are sent twice


@pytest.fixture
def commands(pipeline: CommandPipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The commands that a test has sent, to send one again whose reply was lost."""
    sent: list[tuple[Any, ...]] = []
    execute = pipeline.execute

    async def noting(*command: Any) -> Any:
        sent.append(command)
        return await execute(*command)

    monkeypatch.setattr(pipeline, "execute", noting)
    return sent


async def test_a_change_that_is_repeated_after_another_one_changes_nothing(
    store: WebhookStore, tenant: str, pipeline: CommandPipeline, commands: list[tuple[Any, ...]]
) -> None:
    endpoint_id = await added(store, tenant)
    until_ms = store.clock.now_ms() + 1_000_000
    await store.change(tenant, endpoint_id, {"name": "a"}, secret="whsec_2", old_secret_until_ms=until_ms)
    repeated = commands[-1]
    await store.change(tenant, endpoint_id, {"name": "b"}, secret="whsec_3", enabled=False)

    assert await pipeline.execute(*repeated) == 1

    endpoint = await read(store, endpoint_id)
    assert (endpoint.name, endpoint.secret, endpoint.old_secret) == ("b", "whsec_3", "")
    for number in range(20):
        assert await store.change(tenant, endpoint_id, {"name": str(number)})
    assert (await read(store, endpoint_id)).name == "19"


async def test_a_failure_that_has_disabled_an_endpoint_says_so_again(
    store: WebhookStore,
    clock: LaterClock,
    tenant: str,
    pipeline: CommandPipeline,
    commands: list[tuple[Any, ...]],
) -> None:
    endpoint_id = await added(store, tenant)
    event = WebhookEvent("job.succeeded", "j", 1)
    await store.enter(tenant, event, most=10)
    retry_ms = store.clock.now_ms() + 1000
    settle = partial(
        store.settle, endpoint_id, Claimed(0, event), failure="it answers 410", retry_ms=retry_ms
    )
    assert await settle() is Settled.DISABLED

    assert await pipeline.execute(*commands[-1]) == b"disabled"

    clock.later_s += 1
    assert await settle() is Settled.PAST


# Several deliverers


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


async def test_what_has_no_room_is_dropped_and_said_so(
    store: WebhookStore, clock: LaterClock, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint_id = await added(store, tenant)
    registry = CollectorRegistry()
    deliverer = Delivery(store, Listed(clock), GatewayMetrics(registry), timeout_s=1, max_undelivered=2)
    for number in range(3):
        await deliverer.tell(tenant, WebhookEvent("job.succeeded", str(number), 1))
    assert (await read(store, endpoint_id)).undelivered == 2
    assert "is dropped" in caplog.text
    assert counted(registry, "events_dropped", reason="no_room") == 1
