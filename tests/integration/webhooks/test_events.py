"""What webhooks tell, to whom, and how each event is signed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
from openai import InvalidWebhookSignatureError
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorker,
    chat,
    slow_chat,
)
from tests.integration.receiver import Receiver, receiving
from tests.integration.webhooks.conftest import Hooks, LaterClock, added, delivering, read

from inferfleet.gateway.webhooks.kinds import RESPONSE
from inferfleet.gateway.webhooks.sending import Sender
from inferfleet.producer import Fleet
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis.webhooks import WatchedJob, WebhookStore


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
