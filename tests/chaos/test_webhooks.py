"""Redis killed while something is delivered to an endpoint for webhooks. RabbitMQ has no part in that."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from tests.chaos.conftest import WAIT_S
from tests.integration.receiver import receiving, status

from inferfleet.gateway.server import serving
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.gateway.webhooks import delivery
from inferfleet.local.chaos.harness import Harness
from inferfleet.producer.fleet import Fleet


async def test_redis_killed_during_a_delivery_loses_no_event(
    harness: Harness, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_AFTER_S", (0.1,) * 100)
    settings = GatewaySettings(
        amqp_url=harness.services.amqp_url,
        redis_url=harness.services.redis_url,
        http_port=0,
        pool=harness.pool,
        drain_timeout_s=1,
        webhook_networks=["127.0.0.0/8"],
    )
    answering, answered = asyncio.Event(), asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        await answering.wait()
        await status(503)(writer)
        answered.set()

    async with (
        receiving() as receiver,
        serving(settings) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1", timeout=WAIT_S) as http,
    ):
        # Given an endpoint that is being told of the end of a job, and another job that waits
        receiver.answer = answer
        asked: dict[str, Any] = {"name": "n", "url": receiver.url, "event_types": ["job.cancelled"]}
        endpoint = (await http.post("/webhook_endpoints", json=asked)).json()
        job = {"body": {"messages": [{"role": "user", "content": "hi"}]}}
        first, second = [job["id"] for job in (await http.post("/jobs", json=[job, job])).json()]
        await http.delete(f"/jobs/{first}")
        await receiver.take(1)

        # When Redis is killed, the endpoint refuses meanwhile, and Redis comes back
        await asyncio.to_thread(harness.store.kill)
        answering.set()
        await answered.wait()
        await asyncio.to_thread(harness.store.start)
        receiver.answer = status(200)

        # Then it gets the event again, with the same id, and that of the other job
        await fleet.cancel(second)
        async with asyncio.timeout(WAIT_S):
            while (await http.get(f"/webhook_endpoints/{endpoint['id']}")).json().get("undelivered") != 0 or (
                len({each.headers["webhook-id"] for each in receiver.received}) < 2
            ):
                await asyncio.sleep(0.1)
        ids = [each.headers["webhook-id"] for each in receiver.received]
        assert ids[0] == f"evt_{first}"
        assert ids.count(f"evt_{first}") >= 2
        assert set(ids) == {f"evt_{first}", f"evt_{second}"}
        await http.delete(f"/webhook_endpoints/{endpoint['id']}")
