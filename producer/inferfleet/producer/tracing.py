"""Traces submissions and searches, if the program traces with OpenTelemetry: by the API alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from inferfleet.schemas import span_names
from inferfleet.schemas.job import Job
from inferfleet.schemas.message import trace_headers
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.trace import MAX_TRACESTATE_CHARS, trace_id, valid_trace

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Tracer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


def current_trace() -> dict[str, str]:
    """Return ``traceparent`` and ``tracestate`` of OpenTelemetry's current span; nothing if there is none."""
    if "opentelemetry.trace" not in sys.modules:
        # Who has started a span has imported it.
        return {}
    from opentelemetry.trace import get_current_span

    if not get_current_span().get_span_context().is_valid:
        return {}
    trace: dict[str, str] = {}
    _propagator().inject(trace)
    if len(trace.get("tracestate", "")) > MAX_TRACESTATE_CHARS:
        del trace["tracestate"]
    return trace


@contextmanager
def in_trace(traceparent: str | None) -> Generator[None]:
    """Let what is submitted and searched in the block belong to a trace, if OpenTelemetry is installed."""
    if traceparent is None or "opentelemetry.trace" not in sys.modules:
        yield
        return
    from opentelemetry.context import attach, detach

    token = attach(_propagator().extract({"traceparent": traceparent}))
    try:
        yield
    finally:
        detach(token)


def trace_of_request(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the trace of a request over HTTP: that of the headers, or the current span if that has it."""
    named, current = valid_trace(headers), current_trace()
    if named and current and trace_id(named["traceparent"]) == trace_id(current["traceparent"]):
        return current
    return named


@contextmanager
def sending(jobs: Sequence[Job]) -> Generator[Sequence[Job]]:
    """Submit jobs in the block, in a span of their own, to which they belong.

    The span is a child of the trace of the jobs. Jobs of several traces stay in theirs.
    """
    if not jobs or not _traces():
        yield jobs
        return
    from opentelemetry.trace import SpanKind

    first = jobs[0]
    together = all((job.traceparent, job.tracestate) == (first.traceparent, first.tracestate) for job in jobs)
    context = None
    if together and first.traceparent is not None:
        context = _propagator().extract(trace_headers(first))
    name, attributes = _described(jobs)
    with _span(name, kind=SpanKind.PRODUCER, attributes=attributes, context=context):
        trace = current_trace()
        yield [job.model_copy(update=trace) for job in jobs] if together and trace else jobs


@contextmanager
def searching(index: str, *, tenant: str) -> Generator[Callable[[int], None]]:
    """Search an index in the block, in a span of its own. Call what it yields with the number of hits."""
    if not _traces():
        yield lambda _: None
        return
    from opentelemetry.trace import SpanKind

    attributes = {
        span_names.OPERATION_NAME: span_names.RETRIEVAL,
        span_names.DATA_SOURCE_ID: index,
        span_names.TENANT: tenant,
    }
    with _span(f"{span_names.RETRIEVAL} {index}", kind=SpanKind.CLIENT, attributes=attributes) as span:
        yield lambda hits: span.set_attribute(span_names.HITS, hits)


def _traces() -> bool:
    """Return whether the program has a provider of its own.

    redis-py imports OpenTelemetry wherever it is installed.
    """
    if "opentelemetry.trace" not in sys.modules:
        return False
    from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider

    return not isinstance(get_tracer_provider(), ProxyTracerProvider)


@contextmanager
def _span(
    name: str, *, kind: SpanKind, attributes: Mapping[str, Any], context: Context | None = None
) -> Generator[Span]:
    from opentelemetry.trace import StatusCode

    with _tracer().start_as_current_span(
        name,
        context=context,
        kind=kind,
        attributes=attributes,
        # The message of an error may quote a prompt.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute(span_names.ERROR_TYPE, type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise


def _described(jobs: Sequence[Job]) -> tuple[str, dict[str, Any]]:
    """Return the name and the attributes of the span of a submission."""
    attributes: dict[str, Any] = {
        span_names.MESSAGING_SYSTEM: "rabbitmq",
        span_names.MESSAGING_OPERATION_NAME: span_names.SEND,
        span_names.MESSAGING_OPERATION_TYPE: span_names.SEND,
    }
    name, pool = span_names.SEND, jobs[0].pool
    if all(job.pool == pool for job in jobs):
        attributes |= {span_names.DESTINATION_NAME: job_queue(pool), span_names.POOL: pool}
        name = f"{name} {job_queue(pool)}"
    if len(jobs) > 1:
        attributes[span_names.BATCH_MESSAGE_COUNT] = len(jobs)
    else:
        (job,) = jobs
        attributes |= {
            span_names.MESSAGE_ID: job.id,
            span_names.JOB_ID: job.id,
            span_names.PRIORITY: int(job.priority),
            span_names.TENANT: job.tenant,
        }
    return name, attributes


@cache
def _propagator() -> TraceContextTextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


@cache
def _tracer() -> Tracer:
    from opentelemetry.trace import get_tracer

    return get_tracer(span_names.SCOPE, version("inferfleet"), schema_url=span_names.SCHEMA_URL)
