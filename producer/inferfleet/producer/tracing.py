"""Finds the trace in which a job is submitted, if the program traces with OpenTelemetry."""

from __future__ import annotations

import sys

from inferfleet.schemas.trace import MAX_TRACESTATE_CHARS


def current_trace() -> dict[str, str]:
    """Return ``traceparent`` and ``tracestate`` of OpenTelemetry's current span; nothing if there is none."""
    if "opentelemetry.trace" not in sys.modules:
        # Who has started a span has imported it.
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    trace: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(trace)
    if len(trace.get("tracestate", "")) > MAX_TRACESTATE_CHARS:
        del trace["tracestate"]
    return trace
