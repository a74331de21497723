"""Makes the provider of a process' spans. A thread of OpenTelemetry exports them in batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

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
from opentelemetry.trace import Status
from typing_extensions import override

from inferfleet.wire.outage import Outage

logger = logging.getLogger(__name__)

NOISY: Final = ("opentelemetry.exporter.otlp.proto.http.trace_exporter",)
"""Loggers that write a line at each try of each batch."""

MAX_CHARS: Final = 1000
"""A longer name or value of an attribute is cut, unless OpenTelemetry's variables have another limit for
values: submitters choose some of them, such as the name of the model."""


def make_provider(service: str, *, instance: str) -> TracerProvider:
    """Make a provider of spans. ``service`` is its ``service.name``, unless the environment has another.

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
    provider.add_span_processor(BatchSpanProcessor(_Exporter(OTLPSpanExporter())))
    return provider


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
