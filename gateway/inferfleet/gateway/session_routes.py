"""Sessions over HTTP: read, fork, delete, and change their state."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Request, Response

from inferfleet.gateway.bodies import read_body
from inferfleet.gateway.documents import COUNT, OBJECT, STRING, answer, members, request_body
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.json_answer import json_answer
from inferfleet.producer import Session
from inferfleet.producer.openai.refusals import bad_request, not_found
from inferfleet.producer.openai.requests import apart, check_members, read_json, read_object
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.session import SessionRecord

_SESSION: Final = members(
    id=STRING, messages={"type": "array", "items": OBJECT}, state={}, state_version=COUNT
)
_PATCHED: Final = members(id=STRING, state_version=COUNT)
_FORK: Final = members(id=STRING) | {
    "properties": {"id": STRING, "turns": {"type": ["integer", "null"]}},
    "additionalProperties": False,
}
_FORKED: Final = members(id=STRING)


def session_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["Sessions"])

    @router.get("", responses=answer(_SESSION))
    async def get(request: Request, session_id: str) -> Response:
        """Read a session: its record, the messages of its finished turns, and its state."""
        session, record = await _session(gateway.fleet_of(request), session_id)
        version, state = await session.state()
        return json_answer(
            {
                **record.model_dump(mode="json"),
                "id": session_id,
                "messages": await session.history(),
                "state": state,
                "state_version": version,
            }
        )

    @router.patch("/state", openapi_extra=request_body({}, {"topic": "the sea"}), responses=answer(_PATCHED))
    async def patch_state(session_id: str, request: Request) -> Response:
        """Apply a JSON Merge Patch (RFC 7396) to a session's state."""
        content = await read_body(request, gateway.settings)
        session, _ = await _session(gateway.fleet_of(request), session_id)
        version = await session.patch_state(await apart(partial(read_json, content), content))
        return json_answer({"id": session_id, "state_version": version})

    @router.post(
        "/fork",
        status_code=HTTPStatus.CREATED,
        openapi_extra=request_body(_FORK, {"id": "another"}),
        responses=answer(_FORKED, status=HTTPStatus.CREATED),
    )
    async def fork(session_id: str, request: Request) -> Response:
        """Copy the first turns of a session, by default all, and its state into a new session."""
        content = await read_body(request, gateway.settings)
        fleet = gateway.fleet_of(request)
        session, _ = await _session(fleet, session_id)
        asked = await apart(partial(read_object, content), content)
        check_members(asked, ("id", "turns"))
        new_id, turns = asked.get("id"), asked.get("turns")
        if not isinstance(new_id, str):
            raise bad_request("id: must be the id of the new session", param="id")
        if turns is not None and (not isinstance(turns, int) or isinstance(turns, bool)):
            raise bad_request("turns: must be a whole number", param="turns")
        await session.fork(fleet.stored_session(new_id), turns=turns)
        return json_answer({"id": new_id}, HTTPStatus.CREATED)

    @router.delete("", response_class=Response, status_code=HTTPStatus.NO_CONTENT)
    async def delete(request: Request, session_id: str) -> Response:
        """Delete a session. Its unfinished turns go on, and nothing of them is kept in it."""
        if not await gateway.fleet_of(request).session(session_id).delete():
            raise _unknown(session_id)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return router


async def _session(fleet: TenantFleet, session_id: str) -> tuple[Session, SessionRecord]:
    session = fleet.session(session_id)
    record = await session.get()
    if record is None:
        raise _unknown(session_id)
    return session, record


def _unknown(session_id: str) -> Exception:
    return not_found(f"there is no session {session_id[:128]!r}", code="session_not_found")
