"""Makes the provider of a process' spans, which a thread of OpenTelemetry's exports in batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from typing_extensions import override

from inferfleet.wire.outage import Outage

logger = logging.getLogger(__name__)

NOISY = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
"""Loggers that write a line at each try of each batch, and at each span that is dropped."""


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
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Exporter(OTLPSpanExporter())))
    return provider


class _Exporter(SpanExporter):
    """Logs an outage of the collector once."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._outage = Outage()

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        exported = self._exporter.export(spans)
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
