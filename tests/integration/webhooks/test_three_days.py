"""How long an event is tried, by a clock that the test sets."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from tests.integration.conftest import (
    PATIENCE_S,
    eventually,
)
from tests.integration.webhooks.conftest import LaterClock, Listed, added, counted, delivering, read

from inferfleet.gateway.webhooks.delivery import RETRY_AFTER_S, Delivery
from inferfleet.gateway.webhooks.sending import Sent
from inferfleet.schemas.names import (
    webhook_due_key,
    webhook_events_key,
)
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.webhooks import WebhookStore


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
