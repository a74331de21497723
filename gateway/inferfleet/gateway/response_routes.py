"""OpenAI's Responses API and its conversations."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response

from inferfleet.gateway.bodies import read_body
from inferfleet.gateway.documents import (
    COUNT,
    OBJECT,
    STRING,
    answer,
    answer_or_events,
    list_of,
    members,
    request_of_model,
)
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.waiting import EventResponse, answered, stopping
from inferfleet.producer.openai.api import Progress, Reply
from inferfleet.producer.openai.conversations import ConversationRequest, CreateConversation
from inferfleet.producer.openai.refusals import bad_request
from inferfleet.producer.openai.response_fields import CreateResponse
from inferfleet.producer.openai.response_requests import RESPONSE_PREFIX
from inferfleet.producer.openai.streams import EventStream, last_events

Limit = Annotated[int, Query(ge=1, le=100, description="The most items to list.")]
After = Annotated[str | None, Query(description="The id of the last item that was listed.")]
Order = Annotated[Literal["asc", "desc"], Query(description="Whether the first items come first.")]
Include = Annotated[list[str] | None, Query(alias="include[]", description="Has no effect.")]
StartingAfter = Annotated[
    int | None, Query(ge=-1, le=2**53, description="The number of the last event that was seen.")
]


_ITEMS: Final = list_of(OBJECT, has_more={"type": "boolean"})
_RESPONSE: Final = members(id=STRING, status=STRING, output={"type": "array", "items": OBJECT})
_CONVERSATION: Final = members(id=STRING, created_at=COUNT, metadata=OBJECT)
_DELETED: Final = members(id=STRING, deleted={"const": True})


def response_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["Responses"])

    @router.post(
        "/v1/responses",
        openapi_extra=request_of_model(CreateResponse, {"model": "default", "input": "hello"}),
        responses=answer_or_events(_RESPONSE),
    )
    async def create(request: Request) -> Response:
        """Ask for a response: at its end, by events, or with ``background`` at once."""
        content = await read_body(request, gateway.settings)
        creating = gateway.responses_of(request).create(request.headers, content)
        return _response(gateway, await answered(request, creating, over=gateway.shutdown.over))

    @router.get("/v1/responses/{response_id}", responses=answer_or_events(_RESPONSE))
    async def get(
        request: Request,
        response_id: str,
        stream: bool = False,
        starting_after: StartingAfter = None,
        include_obfuscation: bool = False,
        include: Include = None,
    ) -> Response:
        """Read a response, or follow its events after the one with this number, on any gateway."""
        if include_obfuscation:
            raise bad_request("include_obfuscation: is not supported", param="include_obfuscation")
        if stream:
            following = gateway.responses_of(request).events(response_id, starting_after=starting_after)
            return _response(gateway, await following)
        if starting_after is not None:
            raise bad_request("starting_after: needs stream=true beside it", param="starting_after")
        return _response(gateway, await gateway.responses_of(request).get(response_id))

    @router.post("/v1/responses/{response_id}/cancel", responses=answer(_RESPONSE))
    async def cancel(request: Request, response_id: str) -> Response:
        """Cancel a response of the background."""
        return _response(gateway, await gateway.responses_of(request).cancel(response_id))

    @router.delete("/v1/responses/{response_id}", responses=answer(_DELETED))
    async def delete(request: Request, response_id: str) -> Response:
        """Forget a response and its answer. One that has not ended is cancelled."""
        return _response(gateway, await gateway.responses_of(request).delete(response_id))

    @router.get("/v1/responses/{response_id}/input_items", responses=answer(_ITEMS))
    async def input_items(
        request: Request,
        response_id: str,
        after: After = None,
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
    ) -> Response:
        """List the items of a response's request."""
        listing = gateway.responses_of(request).input_items(
            response_id, after=after, limit=limit, ascending=order == "asc"
        )
        return _response(gateway, await listing)

    return router


def conversation_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1/conversations", tags=["Conversations"])

    @router.post(
        "",
        openapi_extra=request_of_model(CreateConversation, {"metadata": {"topic": "the sea"}}),
        responses=answer(_CONVERSATION),
    )
    async def create(request: Request) -> Response:
        """Create a conversation, with items if there are any."""
        content = await read_body(request, gateway.settings)
        return _response(gateway, await gateway.conversations_of(request).create(content))

    @router.get("/{conversation_id}", responses=answer(_CONVERSATION))
    async def get(request: Request, conversation_id: str) -> Response:
        """Read a conversation."""
        return _response(gateway, await gateway.conversations_of(request).get(conversation_id))

    @router.post(
        "/{conversation_id}",
        openapi_extra=request_of_model(ConversationRequest, {"metadata": {"topic": "the sea"}}),
        responses=answer(_CONVERSATION),
    )
    async def update(request: Request, conversation_id: str) -> Response:
        """Replace the metadata of a conversation."""
        content = await read_body(request, gateway.settings)
        return _response(gateway, await gateway.conversations_of(request).update(conversation_id, content))

    @router.delete("/{conversation_id}", responses=answer(_DELETED))
    async def delete(request: Request, conversation_id: str) -> Response:
        """Forget a conversation. Its responses stay."""
        return _response(gateway, await gateway.conversations_of(request).delete(conversation_id))

    @router.get("/{conversation_id}/items", responses=answer(_ITEMS))
    async def items(
        request: Request,
        conversation_id: str,
        after: After = None,
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
    ) -> Response:
        """List the items of a conversation."""
        listing = gateway.conversations_of(request).items(
            conversation_id, after=after, limit=limit, ascending=order == "asc"
        )
        return _response(gateway, await listing)

    return router


def _response(gateway: Gateway, reply: Reply) -> Response:
    if isinstance(reply.content, bytes):
        return Response(reply.content, headers=dict(reply.headers))
    assert reply.progress is not None  # noqa: S101 - a stream belongs to a job
    shutdown = gateway.shutdown
    return EventResponse(
        reply.content,
        headers=reply.headers,
        # Whoever can go on elsewhere does so at once.
        until=shutdown.draining if reply.progress.kept else shutdown.over,
        interrupted=partial(_interrupted, reply.content, reply.progress),
        stalled_s=gateway.settings.read_timeout_s,
    )


def _interrupted(stream: EventStream, progress: Progress) -> bytes:
    """Let the response go on, if it is stored, and say where the rest of its events is."""
    if not (progress.job_id and progress.stored):
        return last_events(stopping())
    progress.kept = True
    where = f"GET /v1/responses/{RESPONSE_PREFIX}{progress.job_id}?stream=true&starting_after={stream.cursor}"
    return last_events(stopping(f"the response goes on, and {where} has the rest of it"))
