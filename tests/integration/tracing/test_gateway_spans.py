"""One trace shows a job from the request at a gateway to the webhook, whoever dies between."""

from __future__ import annotations

import signal
from typing import Any

import httpx2
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorkerProcess,
    chat,
    eventually,
    slow_chat,
    until_running,
)
from tests.integration.receiver import receiving, status
from tests.integration.tracing.collector import Collector, ExportedSpan
from tests.integration.tracing.conftest import StartGatewayProcess

from inferfleet.producer import Fleet
from inferfleet.schemas.trace import span_of_attempt

ID = "0af7651916cd43dd8448eb211c80319c"
ROOT = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{ID}-{ROOT}-01"}
UNSAMPLED = {"traceparent": f"00-{ID}-{ROOT}-00"}


async def test_request_killed_worker_second_worker_and_webhook_are_one_tree(
    fleet: Fleet,
    start_tracing: StartWorkerProcess,
    start_tracing_gateway: StartGatewayProcess,
    collector: Collector,
    pool: str,
) -> None:
    gateway, address = await start_tracing_gateway()
    first = await start_tracing(lease_s="1", journal_flush_s="0.02")
    async with receiving() as receiver, httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S) as http:
        hook = {"url": receiver.url, "name": pool, "event_types": ["job.succeeded"]}
        endpoint = (await http.post("/v1/webhook_endpoints", json=hook)).raise_for_status().json()
        try:
            order = {"body": slow_chat(tokens=60, step_s=0.05)}
            accepted = await http.post("/v1/jobs", json=order, headers=SAMPLED)
            job_id = accepted.raise_for_status().json()["id"]
            await until_running(fleet, job_id)
            await eventually(lambda: _has_tokens(fleet, job_id))
            first.signal(signal.SIGKILL)
            await first.ended()
            await start_tracing(lease_s="1")
            (delivered,) = await receiver.take(1, within_s=PATIENCE_S)
            await collector.attempts(job_id, 2)
            await eventually(lambda: _has(collector, "webhook"))
            (await http.get("/health/live")).raise_for_status()
        finally:
            await http.delete(f"/v1/webhook_endpoints/{endpoint['id']}")
    assert await gateway.stop() == 0
    (request,) = collector.named("POST /v1/jobs")
    (send,) = collector.named(f"send inferfleet.jobs.{pool}")
    lost, second = await collector.attempts(job_id, 2)
    (webhook,) = collector.named("webhook")
    assert request.parent == ROOT
    assert (request.kind, request.attributes["http.route"]) == (Span.SPAN_KIND_SERVER, "/v1/jobs")
    assert request.resource["service.name"] == "inferfleet-gateway"
    assert (send.parent, send.kind) == (request.id, Span.SPAN_KIND_PRODUCER)
    assert (lost.parent, second.parent) == (send.id, send.id)
    assert (webhook.parent, webhook.kind) == (send.id, Span.SPAN_KIND_CLIENT)
    assert webhook.attributes == {
        "http.request.method": "POST",
        "http.request.resend_count": 0,
        "http.response.status_code": 200,
        "inferfleet.job.id": job_id,
        "inferfleet.tenant": "default",
        "inferfleet.webhook.event": "job.succeeded",
        "server.address": "127.0.0.1",
    }
    assert delivered.headers["traceparent"] == f"00-{ID}-{webhook.id}-01"
    of_job = [span for span in collector.spans if span.trace == ID]
    _check_tree(of_job, ROOT)
    assert not [span for span in collector.spans if "health" in span.name]


async def test_a_delivery_that_fails_is_an_error_and_one_that_is_not_sampled_has_no_trace(
    fleet: Fleet,
    start_tracing: StartWorkerProcess,
    start_tracing_gateway: StartGatewayProcess,
    collector: Collector,
    pool: str,
) -> None:
    _, address = await start_tracing_gateway()
    await start_tracing()
    async with receiving() as receiver, httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S) as http:
        receiver.answer = status(500)
        hook = {"url": receiver.url, "name": pool, "event_types": ["job.succeeded"]}
        endpoint = (await http.post("/v1/webhook_endpoints", json=hook)).raise_for_status().json()
        try:
            for headers in (UNSAMPLED, SAMPLED):
                await http.post("/v1/jobs", json={"body": chat()}, headers=headers)
            received = await receiver.take(2, within_s=PATIENCE_S)
            await eventually(lambda: _has(collector, "webhook"))
        finally:
            await http.delete(f"/v1/webhook_endpoints/{endpoint['id']}")
    (webhook,) = collector.named("webhook")
    assert webhook.failed
    assert webhook.attributes["error.type"] == "500"
    assert ["traceparent" in each.headers for each in received].count(True) == 1


async def test_the_turns_of_a_session_are_linked(
    fleet: Fleet,
    start_tracing: StartWorkerProcess,
    start_tracing_gateway: StartGatewayProcess,
    collector: Collector,
    pool: str,
) -> None:
    _, address = await start_tracing_gateway()
    worker = await start_tracing()
    async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S) as http:
        answers = [
            await http.post(
                "/v1/chat/completions",
                json=chat(word),
                headers={"inferfleet-session": pool, "traceparent": f"00-{word * 16}-{ROOT}-01"},
            )
            for word in ("aa", "bb")
        ]
    jobs = [answer.raise_for_status().headers["inferfleet-job"] for answer in answers]
    assert await worker.stop() == 0
    (first,), (second,) = [await collector.attempts(job_id, 1) for job_id in jobs]
    assert first.attributes["gen_ai.conversation.id"] == second.attributes["gen_ai.conversation.id"] == pool
    assert not first.links
    (link,) = second.links
    assert (link.trace, link.span) == ("aa" * 16, first.id) == (first.trace, span_of_attempt(jobs[0], 1))
    assert link.attributes == {"inferfleet.link": "previous_turn"}
    assert len(collector.named("hydrate")) == 2


def _check_tree(spans: list[ExportedSpan], root: str) -> None:
    ids = [span.id for span in spans]
    assert len(ids) == len(set(ids))
    assert {span.parent for span in spans} <= {root, *ids}


async def _has(collector: Collector, name: str) -> bool:
    return bool(collector.named(name))


async def _has_tokens(fleet: Fleet, job_id: Any) -> bool:
    return (await fleet.get(job_id)).tokens > 0
