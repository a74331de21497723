"""Exports the spans of a process. A thread of OpenTelemetry sends them in batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from typing_extensions import override

from inferfleet.schemas import span_names as names
from inferfleet.schemas.trace import is_sampled
from inferfleet.wire.outage import Outage

logger = logging.getLogger(__name__)

NOISY: Final = ("opentelemetry.exporter.otlp.proto.http.trace_exporter",)
"""Loggers that write a line at each try of each batch."""

MAX_CHARS: Final = 1000
"""A longer name or value of an attribute is cut, unless OpenTelemetry's variables have another limit for
values: submitters choose some of them, such as the name of the model."""

SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)

_LOWER_HALF: Final = (1 << 64) - 1
"""The bits of a trace's id by which OpenTelemetry samples."""

_UNSET: Final = Status()


def span_of_headers(headers: Mapping[str, str]) -> SpanContext | None:
    """Return the span that ``traceparent`` names; ``None`` if there is none."""
    if "traceparent" not in headers:
        return None
    return get_current_span(TraceContextTextMapPropagator().extract(headers)).get_span_context()


def below(parent: SpanContext | None, span_id: int, *, trace: str) -> SpanContext:
    """Return the context of a span with this parent; without one, it begins the trace with this id."""
    if parent is not None:
        return same_trace(parent, span_id)
    return SpanContext(int(trace, 16), span_id, is_remote=False, trace_flags=SAMPLED)


def same_trace(span: SpanContext, span_id: int) -> SpanContext:
    """Return the context of a span that is in the trace of another one."""
    return SpanContext(
        span.trace_id, span_id, is_remote=False, trace_flags=SAMPLED, trace_state=span.trace_state
    )


class SpanExport:
    """Exports the spans of tracers, and spans that are already over when they are made.

    The latter take about a fifth of the CPU: OpenTelemetry neither samples nor locks them.
    """

    def __init__(self, provider: TracerProvider, limits: SpanLimits) -> None:
        self.provider = provider
        self._limits = limits
        self._processor = BatchSpanProcessor(_Exporter(OTLPSpanExporter()))
        provider.add_span_processor(self._processor)
        self._scope = InstrumentationScope(names.SCOPE, version("inferfleet"), names.SCHEMA_URL)
        self._sampled_below = _sampled_below(provider.sampler)

    def samples(self, name: str, *, trace: str, headers: Mapping[str, str]) -> bool:
        """Return whether there are spans of a trace, in which ``headers`` name the submitter's span, if any.

        The sampler decides that OpenTelemetry's variables name, unless the submitter has decided against it.
        Without a submitter's span the sampler goes by the id of the trace, so all processes decide the same.
        """
        if "traceparent" not in headers:
            if self._sampled_below is not None:
                return int(trace, 16) & _LOWER_HALF < self._sampled_below
        elif not is_sampled(headers["traceparent"]):
            return False
        return _samples(self.provider.sampler, int(trace, 16), span_of_headers(headers), name)

    def export(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        *,
        started: int,
        ended: int,
        attributes: Mapping[str, AttributeValue],
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        status: Status = _UNSET,
    ) -> None:
        """Export a span that is over. ``started`` and ``ended`` are in nanoseconds since 1970."""
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                resource=self.provider.resource,
                attributes=self._bounded(attributes),
                links=links,
                kind=kind,
                status=status,
                start_time=started,
                end_time=ended,
                instrumentation_scope=self._scope,
            )
        )

    def _bounded(self, attributes: Mapping[str, AttributeValue]) -> Mapping[str, AttributeValue]:
        most, max_chars = self._limits.max_span_attributes, self._limits.max_span_attribute_length
        if (most is None or len(attributes) <= most) and (
            max_chars is None or all(_fits(value, max_chars) for value in attributes.values())
        ):
            # OpenTelemetry would also look for values of other types, which takes half of the time.
            return attributes
        return BoundedAttributes(most, attributes, max_value_len=max_chars)


def _fits(value: AttributeValue, max_chars: int) -> bool:
    match value:
        case str():
            return len(value) <= max_chars
        case int() | float():
            return True
        case list():
            return all(isinstance(each, str) and len(each) <= max_chars for each in value)
        case _:
            return False


def _samples(sampler: Sampler, trace: int, parent: SpanContext | None, name: str) -> bool:
    context = None if parent is None else set_span_in_context(NonRecordingSpan(parent))
    return sampler.should_sample(context, trace, name).decision is Decision.RECORD_AND_SAMPLE


def _sampled_below(sampler: Sampler) -> int | None:
    """Return below which number the lower half of a trace's id is sampled; ``None`` if that does not decide.

    OpenTelemetry's samplers compare just this, but take several times as long, which small jobs feel.
    """
    if not (
        sampler in (ALWAYS_OFF, ALWAYS_ON, DEFAULT_OFF, DEFAULT_ON)
        or type(sampler) in (TraceIdRatioBased, ParentBasedTraceIdRatio)
    ):
        return None
    low, high = 0, _LOWER_HALF + 1
    while low < high:
        middle = (low + high) // 2
        if _samples(sampler, middle, None, names.QUEUE):
            low = middle + 1
        else:
            high = middle
    return low


def make_export(service: str, *, instance: str) -> SpanExport:
    """Make an export of spans. ``service`` is their ``service.name``, unless the environment has another.

    Raises:
        ValueError: A variable of OpenTelemetry is invalid.

    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ours = Resource.create(
        {
            SERVICE_NAME: service,
            SERVICE_VERSION: version("inferfleet"),
            SERVICE_INSTANCE_ID: instance,
        }
    )
    limits = SpanLimits()
    if limits.max_span_attribute_length is None:
        limits.max_span_attribute_length = MAX_CHARS
    provider = TracerProvider(
        resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False, span_limits=limits
    )
    return SpanExport(provider, limits)


class _Exporter(SpanExporter):
    """Exports spans without the messages of errors, and logs an outage of the collector once."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._outage = Outage()

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        exported = self._exporter.export([_without_words(span) for span in spans])
        if exported is SpanExportResult.SUCCESS:
            if (lasted_s := self._outage.ended()) is not None:
                logger.warning("exporting spans works again after %.1f s", lasted_s)
        elif self._outage.began():
            logger.warning(
                "cannot export spans; they are dropped until the OpenTelemetry collector accepts them "
                "(OTEL_EXPORTER_OTLP_ENDPOINT)"
            )
        return exported

    @override
    def shutdown(self) -> None:
        self._exporter.shutdown()


def _without_words(span: ReadableSpan) -> ReadableSpan:
    """Return a span without the messages and tracebacks of errors: these may quote a prompt.

    OpenTelemetry and its instrumentations put them into the status and into events.
    """
    if not span.events and span.status.description is None and len(span.name) <= MAX_CHARS:
        return span
    return ReadableSpan(
        span.name[:MAX_CHARS],
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
