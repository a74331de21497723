"""Makes a span of each delivery of an event, in the trace of its job, and gives the endpoint that trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from inferfleet.gateway.webhooks.kinds import job_of
from inferfleet.gateway.webhooks.sending import Sent
from inferfleet.producer.tracing import current_trace
from inferfleet.schemas import span_names as names
from inferfleet.wire.redis.webhooks import Claimed, WebhookEndpoint, WebhookStore


class DeliverySpans:
    """Makes spans with the provider of this process."""

    def __init__(self, store: WebhookStore) -> None:
        from opentelemetry.trace import get_tracer

        self._store = store
        self._tracer = get_tracer(names.SCOPE, version("inferfleet"), schema_url=names.SCHEMA_URL)

    async def send(
        self,
        endpoint: WebhookEndpoint,
        claimed: Claimed,
        send: Callable[[Mapping[str, str]], Awaitable[Sent]],
    ) -> Sent:
        """Send an event with the headers of its span. That of a job which is not sampled has none."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        event, job_id = claimed.event, job_of(claimed.event)
        traceparent = await self._store.traceparent(job_id)
        if traceparent is None:
            return await send({})
        attributes: dict[str, Any] = {
            names.HTTP_METHOD: "POST",
            names.HTTP_RESEND_COUNT: claimed.tried,
            # Its path and query may have a secret.
            names.SERVER_ADDRESS: urlsplit(endpoint.url).hostname or "",
            names.JOB_ID: job_id,
            names.TENANT: endpoint.tenant,
            names.WEBHOOK_EVENT: event.type,
        }
        context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        with self._tracer.start_as_current_span(
            names.WEBHOOK, context=context, kind=SpanKind.CLIENT, attributes=attributes
        ) as span:
            sent = await send(current_trace())
            if sent.status is not None:
                span.set_attribute(names.HTTP_STATUS_CODE, sent.status)
            if not sent.accepted:
                span.set_attribute(names.ERROR_TYPE, str(sent.status or "unreachable"))
                span.set_status(Status(StatusCode.ERROR, sent.failure))
            return sent
