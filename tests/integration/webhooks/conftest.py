"""Webhooks as whoever receives them sees them, on real services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any, cast
from uuid import uuid4

import httpx2
import pytest
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartGateway,
    chat,
)
from tests.integration.receiver import Receiver, receiving

from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.webhooks.delivery import Delivery
from inferfleet.gateway.webhooks.sending import Sender, Sent
from inferfleet.gateway.webhooks.signing import new_secret
from inferfleet.producer import Fleet
from inferfleet.schemas.webhooks import EVENT_TYPES
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.webhooks import WebhookEndpoint, WebhookStore
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
async def sender() -> AsyncIterator[Sender]:
    async with Sender.opened(allowed=[ip_network("127.0.0.0/8")], timeout_s=5) as sender:
        yield sender


@pytest.fixture
def clock(pipeline: CommandPipeline) -> LaterClock:
    return LaterClock(pipeline.clock)


@pytest.fixture
def store(pipeline: CommandPipeline, clock: LaterClock) -> WebhookStore:
    return WebhookStore(pipeline, clock=clock)


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
