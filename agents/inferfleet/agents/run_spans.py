"""Makes OpenTelemetry's span of a run when it has ended, from when it was started.

::

    invoke_agent <agent>            its parent is what started the run
    ├── queue, chat <model>         the spans of each job that asks its model, or that a tool submits
    └── invoke_agent <agent>        a child

The id of the span follows from the run's. So what the run starts is below it, whichever runners have the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.trace import Status, StatusCode

from inferfleet.schemas import span_names as names
from inferfleet.schemas.names import run_queue
from inferfleet.schemas.run import RunFailureCode, RunOrder, RunResult
from inferfleet.schemas.trace import is_sampled, span_of_run, trace_of_attempts
from inferfleet.wire.span_export import SpanExport, below, span_of_headers

_MS: Final = 1_000_000
"""So many nanoseconds are a millisecond."""


class RunSpans:
    """Makes the spans of the runs that end on one runner."""

    def __init__(self, export: SpanExport) -> None:
        self._export = export

    def traceparent(self, order: RunOrder) -> str:
        """Return the trace of what a run starts, as runners have it that trace: its own span is the parent.

        Whatever is started by a run that is not sampled has no spans either.
        """
        if order.traceparent is not None and not is_sampled(order.traceparent):
            return order.traceparent
        sampled = "01" if self._samples(order) else "00"
        return f"00-{trace_of_attempts(order.id, order.traceparent)}-{span_of_run(order.id)}-{sampled}"

    def ended(self, order: RunOrder, result: RunResult, *, ended_ms: int) -> None:
        """Make the span of a run that has ended at this time, in Redis' time."""
        if not self._samples(order):
            return
        parent = span_of_headers(_headers(order))
        context = below(parent, int(span_of_run(order.id), 16), trace=trace_of_attempts(order.id, None))
        attributes, status = _attributes(order, result), Status()
        if result.error is not None and result.error.code is not RunFailureCode.CANCELLED:
            attributes[names.ERROR_TYPE] = result.error.code
            # Without the message, because it may quote a prompt.
            status = Status(StatusCode.ERROR)
        self._export.export(
            f"{names.INVOKE_AGENT} {order.agent}",
            context,
            parent,
            started=order.created_ms * _MS,
            ended=max(order.created_ms, ended_ms) * _MS,
            attributes=attributes,
            status=status,
        )

    def _samples(self, order: RunOrder) -> bool:
        trace = trace_of_attempts(order.id, order.traceparent)
        return self._export.samples(names.INVOKE_AGENT, trace=trace, headers=_headers(order))


def _headers(order: RunOrder) -> Mapping[str, str]:
    return {} if order.traceparent is None else {"traceparent": order.traceparent}


def _attributes(order: RunOrder, result: RunResult) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        names.OPERATION_NAME: names.INVOKE_AGENT,
        names.AGENT_NAME: order.agent,
        names.DESTINATION_NAME: run_queue(order.queue),
        names.TENANT: order.tenant,
        names.RUN_ID: order.id,
        names.RUN_STATE: result.state,
        names.RUN_STEPS: result.steps,
        names.RUN_TOKENS: result.tokens,
    }
    if result.cost is not None:
        attributes[names.RUN_COST] = float(result.cost)
    if order.replay is not None:
        attributes[names.RUN_REPLAYS] = order.replay.run_id
    return attributes
