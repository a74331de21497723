"""What cannot be read, found or stored holds up nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry
from tests.integration.conftest import (
    chat,
    eventually,
)
from tests.integration.receiver import Receiver
from tests.integration.webhooks.conftest import Hooks, LaterClock, Listed, added, counted, delivering, read

from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.gateway.webhooks import delivery
from inferfleet.gateway.webhooks.delivery import Delivery
from inferfleet.gateway.webhooks.kinds import RESPONSE
from inferfleet.gateway.webhooks.sending import Sender
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
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.webhooks import WatchedJob, WebhookStore


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
