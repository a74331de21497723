"""A submission is a span of the program that submits, if that traces."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from tests.integration.conftest import EveryJob, chat

from inferfleet.producer import Fleet
from inferfleet.producer.tenant_fleet import Policy, TenantFleet
from inferfleet.schemas.errors import UnknownPoolError
from inferfleet.schemas.span_names import SCHEMA_URL
from inferfleet.schemas.trace import is_sampled

ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{ID}-b7ad6b7169203331-01"
UNSAMPLED = f"{PARENT[:-2]}00"


async def test_a_job_belongs_to_the_span_that_sends_it(
    fleet: Fleet, provider: TracerProvider, spans: InMemorySpanExporter, pool: str
) -> None:
    with provider.get_tracer("a program").start_as_current_span("its work"):
        job = await fleet.submit("hello", pool=pool, priority=7)
    send, work = spans.get_finished_spans()
    assert send.parent is not None
    assert send.context is not None
    assert work.context is not None
    assert send.parent.span_id == work.context.span_id
    trace, span = format_trace_id(send.context.trace_id), format_span_id(send.context.span_id)
    assert job.traceparent is not None
    assert job.traceparent[:52] == f"00-{trace}-{span}"
    assert is_sampled(job.traceparent)
    assert (send.name, send.kind) == (f"send inferfleet.jobs.{pool}", SpanKind.PRODUCER)
    assert send.instrumentation_scope is not None
    assert send.instrumentation_scope.schema_url == SCHEMA_URL
    assert dict(send.attributes or {}) == {
        "inferfleet.job.id": job.id,
        "inferfleet.pool": pool,
        "inferfleet.priority": 7,
        "inferfleet.tenant": "default",
        "messaging.destination.name": f"inferfleet.jobs.{pool}",
        "messaging.message.id": job.id,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.system": "rabbitmq",
    }


async def test_many_jobs_are_sent_in_one_span(fleet: Fleet, spans: InMemorySpanExporter, pool: str) -> None:
    jobs = await fleet.submit_many(["hello", "again"], pool=pool, traceparent=PARENT, tracestate="a=1")
    (send,) = spans.get_finished_spans()
    assert send.parent is not None
    assert format_span_id(send.parent.span_id) == PARENT[36:52]
    assert dict(send.attributes or {})["messaging.batch.message_count"] == 2
    assert send.context is not None
    assert {job.traceparent for job in jobs} == {f"00-{ID}-{format_span_id(send.context.span_id)}-01"}
    assert {job.tracestate for job in jobs} == {"a=1"}


@pytest.mark.parametrize("policy", [None, EveryJob()])
async def test_the_jobs_of_a_tenant_are_sent_in_spans_too(
    fleet: Fleet, spans: InMemorySpanExporter, pool: str, policy: Policy | None
) -> None:
    tenant = TenantFleet(fleet, f"{pool}.tenant", policy=policy)
    jobs = [await tenant.submit(chat(), pool=pool)]
    jobs += await tenant.submit_many([tenant.make(chat(), pool=pool, traceparent=PARENT)])
    sent = [span.context for span in spans.get_finished_spans()]
    assert [job.traceparent and job.traceparent[36:52] for job in jobs] == [
        context and format_span_id(context.span_id) for context in sent
    ]


async def test_jobs_of_several_traces_stay_in_theirs(
    fleet: Fleet, spans: InMemorySpanExporter, pool: str
) -> None:
    other = f"00-{'ab' * 16}-b7ad6b7169203331-01"
    made = [fleet.make("hello", pool=pool, traceparent=each) for each in (PARENT, other)]
    jobs = await fleet.submit_many(made)
    assert [job.traceparent for job in jobs] == [PARENT, other]
    assert len(spans.get_finished_spans()) == 1
    assert await fleet.submit_many([]) == []


async def test_a_job_says_that_it_is_not_sampled(
    fleet: Fleet, spans: InMemorySpanExporter, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool, traceparent=UNSAMPLED)
    assert job.traceparent is not None
    assert job.traceparent.startswith(f"00-{ID}-")
    assert job.traceparent.endswith("-00")
    assert not spans.get_finished_spans()


async def test_a_refusal_is_the_error_of_its_span(fleet: Fleet, spans: InMemorySpanExporter) -> None:
    with pytest.raises(UnknownPoolError):
        await fleet.submit("hello", pool="no-such-pool")
    (send,) = spans.get_finished_spans()
    assert send.status.status_code is StatusCode.ERROR
    assert dict(send.attributes or {})["error.type"] == "UnknownPoolError"
    # Its words are not in the span, because those of another error may quote a prompt.
    assert "no-such-pool" not in f"{send.status.description} {[event.attributes for event in send.events]}"


async def test_the_trace_of_a_submission_makes_it_no_other_job(
    fleet: Fleet, spans: InMemorySpanExporter, pool: str
) -> None:
    first, again = [await fleet.submit(chat(), pool=pool, idempotency_key=pool) for _ in range(2)]
    assert first.id == again.id
    assert len(spans.get_finished_spans()) == 2
