"""OpenAI's endpoints."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from inferfleet.gateway.bodies import read_body
from inferfleet.gateway.documents import request_of
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.waiting import EventResponse, answered, stopping
from inferfleet.producer.openai.api import Progress, Reply
from inferfleet.producer.openai.streams import EventStream, last_events
from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint


def openai_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["OpenAI"])
    for endpoint, spec in ENDPOINTS.items():
        for path in (endpoint, *spec.other_paths):
            router.add_api_route(
                path,
                partial(_answer, gateway, endpoint),
                methods=["POST"],
                name=endpoint,
                include_in_schema=path == endpoint,
                openapi_extra=request_of(endpoint),
            )

    @router.get("/v1/models")
    async def list_models(request: Request) -> Response:
        """List the models and pools that a request may name."""
        return _response(gateway, await gateway.api_of(request).list_models())

    @router.get("/v1/models/{model:path}")
    async def get_model(request: Request, model: str) -> Response:
        """Describe one model or pool."""
        return _response(gateway, await gateway.api_of(request).get_model(model))

    return router


async def _answer(gateway: Gateway, endpoint: Endpoint, request: Request) -> Response:
    content = await read_body(request, gateway.settings)
    answering = gateway.api_of(request).answer(endpoint, request.headers, content)
    return _response(gateway, await answered(request, answering, over=gateway.shutdown.over))


def _response(gateway: Gateway, reply: Reply) -> Response:
    if isinstance(reply.content, bytes):
        return Response(reply.content, headers=dict(reply.headers))
    assert reply.progress is not None  # noqa: S101 - a stream belongs to a job
    return EventResponse(
        reply.content,
        headers=reply.headers,
        until=gateway.shutdown.over,
        interrupted=partial(_interrupted, reply.content, reply.progress),
        stalled_s=gateway.settings.read_timeout_s,
    )


def _interrupted(stream: EventStream, progress: Progress) -> bytes:
    """Let the job go on, and say where its events are."""
    if not progress.job_id:
        return last_events(stopping())
    progress.kept = True
    where = f"GET /v1/jobs/{progress.job_id}/events with Last-Event-ID: {stream.cursor}"
    return last_events(stopping(f"the job goes on, and {where} has the rest of it"))
