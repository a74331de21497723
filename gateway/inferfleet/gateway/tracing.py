"""Makes a span of each request, in the trace that the request names."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferfleet.gateway.settings import GatewaySettings
from inferfleet.schemas.span_names import HTTP_ROUTE
from inferfleet.wire.tracing import exporting_spans


@asynccontextmanager
async def tracing(settings: GatewaySettings) -> AsyncGenerator[None]:
    """Export the spans of this process while the block runs, if the settings ask for that.

    Raises:
        ConfigurationError: OpenTelemetry is not installed, or one of its variables is invalid.

    """
    if not settings.tracing:
        yield
        return
    async with exporting_spans("inferfleet-gateway", instance=settings.client_id) as export:
        from opentelemetry.trace import set_tracer_provider

        # The client, which the gateway uses, takes that of its program.
        set_tracer_provider(export.provider)
        yield


def trace_requests(app: FastAPI) -> None:
    """Make a span of each request, but not of those about the gateway's health."""
    from opentelemetry.instrumentation.asgi import (  # pyright: ignore[reportMissingTypeStubs]
        OpenTelemetryMiddleware,
    )

    app.add_middleware(_NamedByRoute)
    app.add_middleware(OpenTelemetryMiddleware, excluded_urls="/health/", exclude_spans=["receive", "send"])


class _NamedByRoute:
    """Middleware that names the span of a request by its route, which is known when the response starts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        from opentelemetry.trace import get_current_span

        span = get_current_span()

        async def name_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path_format", "")
                span.update_name(f"{scope['method']} {route}".strip())
                if route:
                    span.set_attribute(HTTP_ROUTE, route)
            await send(message)

        await self._app(scope, receive, name_and_send)
