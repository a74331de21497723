"""Endpoints for webhooks over HTTP, as in OpenAI's API: add, list, read, change, remove, rotate, test.

Ours besides: an endpoint says whether it is ``enabled``, since when it fails and how; and a change of
``enabled`` to true lets one go on that was disabled.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Query, Request, Response

from inferfleet.gateway.bodies import read_body
from inferfleet.gateway.callers import caller_of
from inferfleet.gateway.documents import COUNT, STRING, answer, list_of, members, request_body
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.json_answer import json_answer
from inferfleet.gateway.webhooks.sending import MAX_URL
from inferfleet.gateway.webhooks.signing import new_secret
from inferfleet.producer.openai.lists import list_page
from inferfleet.producer.openai.refusals import Refusal, RefusedError, bad_request, not_found
from inferfleet.producer.openai.requests import apart, check_members, read_object
from inferfleet.schemas.problems import kind, not_a_choice
from inferfleet.schemas.webhooks import EVENT_TYPES, WebhookEvent
from inferfleet.wire.redis.webhooks import MAX_ENDPOINTS, WebhookEndpoint

ROTATION_MS: Final = 24 * 3600 * 1000
"""How long the secret so far signs beside a new one, if that is asked for."""

MAX_NAME: Final = 128

KEEP_OLD: Final = "keep_old_secret_active_for_24_hours"

_ID: Final = re.compile(r"we_[0-9a-f]{32}", re.ASCII)

Limit = Annotated[int, Query(ge=1, le=100, description="The most endpoints to list.")]

_EVENT_TYPE: Final = {"enum": list(EVENT_TYPES)}
_MEMBERS: Final[Mapping[str, Any]] = {
    "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
    "url": {"type": "string", "minLength": 1, "maxLength": MAX_URL},
    "event_types": {"type": "array", "items": _EVENT_TYPE, "minItems": 1},
}
_FLAG: Final = {"type": "boolean"}
_TIME_OR_NULL: Final = {"type": ["integer", "null"]}
_STRING_OR_NULL: Final = {"type": ["string", "null"]}
_NEW: Final = {**members(**_MEMBERS), "additionalProperties": False}
_CHANGE: Final = {
    "type": "object",
    "properties": {**_MEMBERS, "enabled": _FLAG},
    "additionalProperties": False,
}
_ROTATION: Final = {"type": "object", "properties": {KEEP_OLD: _FLAG}, "additionalProperties": False}
_TEST: Final = {**members(event_type=_EVENT_TYPE), "additionalProperties": False}
_EXAMPLE: Final = {"name": "billing", "url": "https://example.com/hook", "event_types": ["job.succeeded"]}
_DESCRIBED: Final[Mapping[str, Any]] = {
    "object": {"const": "webhook_endpoint"},
    "id": STRING,
    **_MEMBERS,
    "created_at": COUNT,
    "updated_at": COUNT,
    "signing_secret_hint": STRING,
    "enabled": _FLAG,
    "disabled_at": _TIME_OR_NULL,
    "failing_since": _TIME_OR_NULL,
    "failure": _STRING_OR_NULL,
    "undelivered": COUNT,
}
_ENDPOINT: Final = members(**_DESCRIBED)
_WITH_SECRET: Final = members(**_DESCRIBED, signing_secret=STRING)
_LIST: Final = list_of(_ENDPOINT, first_id=_STRING_OR_NULL, last_id=_STRING_OR_NULL, has_more=_FLAG)
_DELETED: Final = members(object={"const": "webhook_endpoint.deleted"}, id=STRING, deleted={"const": True})
_TESTED: Final = members(
    object={"const": "webhook_endpoint.test"},
    webhook_endpoint_id=STRING,
    event_type=_EVENT_TYPE,
    status_code=COUNT,
    success={"const": True},
)


def webhook_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1", tags=["Webhooks"])
    webhooks, store = gateway.webhooks, gateway.webhooks.store

    async def read(request: Request, *members: str) -> dict[str, Any]:
        content = await read_body(request, gateway.settings)
        asked = await apart(partial(read_object, content), content)
        check_members(asked, members)
        return asked

    async def url_of(request: Request, asked: dict[str, Any]) -> str:
        url = _text(asked, "url")
        problem = await webhooks.sender.problem(url, tenant=caller_of(request).tenant)
        if problem is not None:
            raise bad_request(f"url: {problem}", param="url")
        return url

    async def found(request: Request, endpoint_id: str) -> WebhookEndpoint:
        _check_id(endpoint_id)
        endpoint = await store.endpoint(endpoint_id)
        if endpoint is None or endpoint.tenant != caller_of(request).tenant:
            raise _unknown(endpoint_id)
        return endpoint

    @router.get("/webhook_event_types", responses=answer(list_of(_EVENT_TYPE)))
    async def event_types() -> Response:
        """List the types of events."""
        return json_answer({"object": "list", "data": EVENT_TYPES})

    @router.post(
        "/webhook_endpoints", openapi_extra=request_body(_NEW, _EXAMPLE), responses=answer(_WITH_SECRET)
    )
    async def create(request: Request) -> Response:
        """Add an endpoint. Only this answer, and that of a rotation, has its secret."""
        asked = await read(request, "name", "url", "event_types")
        now_ms = store.clock.now_ms()
        endpoint = WebhookEndpoint(
            id=f"we_{secrets.token_hex(16)}",
            tenant=caller_of(request).tenant,
            name=_text(asked, "name"),
            event_types=_event_types(asked),
            url=await url_of(request, asked),
            secret=new_secret(),
            created_ms=now_ms,
            updated_ms=now_ms,
        )
        if not await store.add(endpoint):
            raise RefusedError(
                Refusal(
                    status=HTTPStatus.CONFLICT,
                    code="too_many_endpoints",
                    message=f"there are {MAX_ENDPOINTS} endpoints already; remove one first",
                )
            )
        return json_answer(_described(endpoint, with_secret=True))

    @router.get("/webhook_endpoints", responses=answer(_LIST))
    async def list_endpoints(request: Request, after: str | None = None, limit: Limit = 20) -> Response:
        """List endpoints, the newest first."""
        endpoints = await store.endpoints(caller_of(request).tenant)
        ids = [endpoint.id for endpoint in endpoints]
        if after is not None and after not in ids:
            raise bad_request(f"after: {after[:64]!r} is not the id of an endpoint", param="after")
        behind = endpoints[0 if after is None else ids.index(after) + 1 :]
        page = [_described(endpoint) for endpoint in behind[:limit]]
        return json_answer(list_page(page, more=len(behind) > limit))

    @router.get("/webhook_endpoints/{endpoint_id}", responses=answer(_ENDPOINT))
    async def retrieve(request: Request, endpoint_id: str) -> Response:
        """Read an endpoint."""
        return json_answer(_described(await found(request, endpoint_id)))

    @router.post(
        "/webhook_endpoints/{endpoint_id}",
        openapi_extra=request_body(_CHANGE, {"enabled": True}),
        responses=answer(_ENDPOINT),
    )
    async def update(request: Request, endpoint_id: str) -> Response:
        """Change an endpoint, also whether it is enabled. Events wait for one that is enabled again."""
        asked = await read(request, "name", "url", "event_types", "enabled")
        await found(request, endpoint_id)
        enabled = _flag(asked, "enabled")
        fields: dict[str, str] = {}
        if "name" in asked:
            fields["name"] = _text(asked, "name")
        if "event_types" in asked:
            fields["event_types"] = " ".join(_event_types(asked))
        if "url" in asked:
            fields["url"] = await url_of(request, asked)
        if not await store.change(caller_of(request).tenant, endpoint_id, fields, enabled=enabled):
            raise _unknown(endpoint_id)
        webhooks.delivery.wake()
        return json_answer(_described(await found(request, endpoint_id)))

    @router.delete("/webhook_endpoints/{endpoint_id}", responses=answer(_DELETED))
    async def delete(request: Request, endpoint_id: str) -> Response:
        """Remove an endpoint, and what it has not accepted yet."""
        _check_id(endpoint_id)
        if not await store.remove(caller_of(request).tenant, endpoint_id):
            raise _unknown(endpoint_id)
        return json_answer({"object": "webhook_endpoint.deleted", "id": endpoint_id, "deleted": True})

    @router.post(
        "/webhook_endpoints/{endpoint_id}/rotate_secret",
        openapi_extra=request_body(_ROTATION, {KEEP_OLD: True}),
        responses=answer(_WITH_SECRET),
    )
    async def rotate_secret(request: Request, endpoint_id: str) -> Response:
        """Make a new secret. On demand the one so far signs as well for 24 hours."""
        asked = await read(request, KEEP_OLD)
        _check_id(endpoint_id)
        keep_old = _flag(asked, KEEP_OLD)
        secret = new_secret()
        until_ms = store.clock.now_ms() + ROTATION_MS if keep_old else None
        if not await store.change(
            caller_of(request).tenant, endpoint_id, {}, secret=secret, old_secret_until_ms=until_ms
        ):
            raise _unknown(endpoint_id)
        return json_answer(_described(await found(request, endpoint_id), with_secret=True))

    @router.post(
        "/webhook_endpoints/{endpoint_id}/test",
        openapi_extra=request_body(_TEST, {"event_type": "job.succeeded"}),
        responses=answer(_TESTED),
    )
    async def test(request: Request, endpoint_id: str) -> Response:
        """Send a sample event once, and tell what the endpoint has answered."""
        asked = await read(request, "event_type")
        endpoint = await found(request, endpoint_id)
        event_type = asked.get("event_type")
        if event_type not in EVENT_TYPES:
            raise _unknown_type("event_type", event_type)
        at_s = store.clock.now_ms() // 1000
        event = WebhookEvent(event_type, f"test_{secrets.token_hex(8)}", at_s)
        sent = await webhooks.delivery.send(endpoint, event)
        if sent.status is None:
            raise RefusedError(
                Refusal(
                    status=HTTPStatus.BAD_GATEWAY,
                    code="endpoint_unreachable",
                    message=f"the endpoint cannot be tested: {sent.failure}",
                )
            )
        return json_answer(
            {
                "object": "webhook_endpoint.test",
                "webhook_endpoint_id": endpoint_id,
                "event_type": event_type,
                "status_code": sent.status,
                "success": True,
            }
        )

    return router


def _described(endpoint: WebhookEndpoint, *, with_secret: bool = False) -> dict[str, Any]:
    described: dict[str, Any] = {
        "object": "webhook_endpoint",
        "id": endpoint.id,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "created_at": endpoint.created_ms // 1000,
        "updated_at": endpoint.updated_ms // 1000,
        "signing_secret_hint": f"whsec_…{endpoint.secret[-4:]}",
        "enabled": not endpoint.disabled_ms,
        "disabled_at": endpoint.disabled_ms // 1000 or None,
        "failing_since": endpoint.failing_ms // 1000 or None,
        "failure": endpoint.failure or None,
        "undelivered": endpoint.undelivered,
    }
    if with_secret:
        described["signing_secret"] = endpoint.secret
    return described


def _text(asked: dict[str, Any], name: str) -> str:
    text = asked.get(name)
    if not isinstance(text, str) or not text:
        raise bad_request(f"{name}: must be a text, not {kind(text)}", param=name)
    if name == "name" and len(text) > MAX_NAME:
        raise bad_request(f"name: has more than {MAX_NAME} characters", param=name)
    return text


def _flag(asked: dict[str, Any], name: str) -> bool | None:
    flag = asked.get(name)
    if name in asked and not isinstance(flag, bool):
        raise bad_request(f"{name}: must be true or false", param=name)
    return flag


def _event_types(asked: dict[str, Any]) -> tuple[str, ...]:
    given = asked.get("event_types")
    if not isinstance(given, list) or not given:
        raise bad_request("event_types: must be a list of types of events, not empty", param="event_types")
    types = cast("list[object]", given)
    for each in types:
        if each not in EVENT_TYPES:
            raise _unknown_type("event_types", each)
    return tuple(each for each in EVENT_TYPES if each in types)


def _unknown_type(name: str, given: object) -> RefusedError:
    return bad_request(f"{name}: {not_a_choice(given, ', '.join(EVENT_TYPES))}", param=name)


def _check_id(endpoint_id: str) -> None:
    if not _ID.fullmatch(endpoint_id):
        raise _unknown(endpoint_id)


def _unknown(endpoint_id: str) -> RefusedError:
    return not_found(f"there is no endpoint {endpoint_id[:128]!r}", code="webhook_endpoint_not_found")
