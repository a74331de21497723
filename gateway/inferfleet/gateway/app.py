"""The application: its routes, and what its errors look like."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match

from inferfleet.gateway.access_log import CLIENT_GONE, OpenRequests
from inferfleet.gateway.agent_routes import agent_routes
from inferfleet.gateway.authentication import OnlyKeys
from inferfleet.gateway.batches.batch_routes import batch_routes
from inferfleet.gateway.batches.file_routes import file_routes
from inferfleet.gateway.batches.storage import StorageError
from inferfleet.gateway.bodies import UnreadBodies
from inferfleet.gateway.callers import caller_of
from inferfleet.gateway.documents import with_document
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.hosts import OnlyLoopbackHosts
from inferfleet.gateway.job_routes import job_routes
from inferfleet.gateway.openai_routes import openai_routes
from inferfleet.gateway.refusal_answer import RefusalAnswer
from inferfleet.gateway.response_routes import conversation_routes, response_routes
from inferfleet.gateway.session_routes import session_routes
from inferfleet.gateway.tracing import trace_requests
from inferfleet.gateway.ui.app import make_ui
from inferfleet.gateway.ui.pages import UI_PATH
from inferfleet.gateway.webhook_routes import webhook_routes
from inferfleet.producer.job_making import session_prefix
from inferfleet.producer.openai.refusals import RETRY_AFTER_S, Refusal, RefusedError, refusal_of
from inferfleet.schemas.errors import InferfleetError
from inferfleet.schemas.problems import sentence

logger = logging.getLogger(__name__)

LIVE_PATH = "/health/live"
READY_PATH = "/health/ready"


def make_app(gateway: Gateway) -> FastAPI:
    """Make the application of a gateway."""
    app = FastAPI(
        title="inferfleet gateway",
        version=version("inferfleet"),
        description="OpenAI's API in front of a queue, and jobs over HTTP.",
        redoc_url=None,
        redirect_slashes=False,
    )

    @app.head(LIVE_PATH, include_in_schema=False)
    @app.get(LIVE_PATH, tags=["Health"])
    async def live() -> dict[str, str]:
        """Tell whether the process answers."""
        return {"status": "ok"}

    @app.head(READY_PATH, include_in_schema=False)
    @app.get(READY_PATH, tags=["Health"])
    async def ready() -> Response:
        """Tell whether the gateway takes requests. It does without RabbitMQ and Redis, and answers 503."""
        if gateway.shutdown.draining.done():
            return Response(
                '{"status":"stopping"}', HTTPStatus.SERVICE_UNAVAILABLE, media_type="application/json"
            )
        return Response('{"status":"ok"}', media_type="application/json")

    makers = (
        openai_routes,
        response_routes,
        conversation_routes,
        job_routes,
        agent_routes,
        session_routes,
        webhook_routes,
        file_routes,
        batch_routes,
    )
    routers = [routes(gateway) for routes in makers]
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    for router in routers:
        app.include_router(router)
    gateway.metrics.routed(
        (method, route.path_format)
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    )
    if gateway.fleet_view is not None:
        app.add_route(UI_PATH, lambda _: RedirectResponse(f"{UI_PATH}/"), include_in_schema=False)
        app.mount(UI_PATH, make_ui(gateway, gateway.fleet_view))
    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        InferfleetError: _refused,
        RefusedError: _refused,
        StorageError: _without_storage,
        HTTPException: partial(_unknown_route, routes),
        RequestValidationError: _invalid_parameter,
        ClientDisconnect: _gone,
        Exception: _unforeseen,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)
    if gateway.keys is not None:
        app.add_middleware(OnlyKeys, keys=gateway.keys)
    elif not gateway.settings.allow_anonymous:
        app.add_middleware(OnlyLoopbackHosts)
    app.add_middleware(OpenRequests, most=gateway.settings.max_open_requests, metrics=gateway.metrics)
    app.add_middleware(UnreadBodies)
    if gateway.settings.tracing:
        trace_requests(app)
    return with_document(app, keys=gateway.keys is not None)


async def _refused(request: Request, error: InferfleetError | RefusedError) -> Response:
    refusal = refusal_of(error)
    # Sessions are stored under longer ids than their tenants know.
    message = refusal.message.replace(session_prefix(caller_of(request).tenant), "")
    return RefusalAnswer(replace(refusal, message=message))


async def _without_storage(_: Request, error: StorageError) -> Response:
    logger.warning("a request is refused: %s", error)
    return RefusalAnswer(
        Refusal(
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            code="storage_unreachable",
            message="the storage of files does not answer, or is full; the log has the details",
            retry=True,
            after_s=RETRY_AFTER_S,
        )
    )


async def _unknown_route(routes: Iterable[BaseRoute], request: Request, error: HTTPException) -> Response:
    status = HTTPStatus(error.status_code)
    what = "there is no such path" if status is HTTPStatus.NOT_FOUND else status.phrase
    refusal = Refusal(status=status, code=status.name.lower(), message=f"{request.method}: {what}")
    response = RefusalAnswer(refusal)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["allow"] = ", ".join(_methods(routes, request))
    return response


def _methods(routes: Iterable[BaseRoute], request: Request) -> list[str]:
    """List the methods of a path, which has a route for each."""
    matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


async def _invalid_parameter(_: Request, error: RequestValidationError) -> Response:
    problem = error.errors()[0]
    name = str(problem["loc"][-1])
    return RefusalAnswer(
        Refusal(
            status=HTTPStatus.BAD_REQUEST,
            code="invalid_request",
            message=f"{name}: {sentence(problem, quoting=True)}",
            param=name,
        )
    )


async def _gone(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _unforeseen(_: Request, __: Exception) -> Response:
    # The server logs it.
    return RefusalAnswer(
        Refusal(
            status=HTTPStatus.INTERNAL_SERVER_ERROR,
            code="internal",
            message="the gateway failed unexpectedly; its log has the details",
        )
    )
