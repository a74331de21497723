"""Endpoints: how they are managed, and what happens while they do not accept."""

from __future__ import annotations

import pytest
from tests.integration.conftest import (
    eventually,
)
from tests.integration.receiver import Receiver, endless, never, receiving, status
from tests.integration.webhooks.conftest import ALL, Hooks, LaterClock, added, read

from inferfleet.gateway.webhooks import delivery
from inferfleet.wire.redis.webhooks import WatchedJob, WebhookStore


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


async def test_without_an_endpoint_nothing_is_watched(store: WebhookStore, tenant: str) -> None:
    job = WatchedJob("job", "j", tenant)
    assert not await store.watch([job])
    endpoint_id = await added(store, tenant)
    assert await store.watch([job])
    await store.forget([job])
    await store.remove(tenant, endpoint_id)
    assert not await store.watch([job])


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
