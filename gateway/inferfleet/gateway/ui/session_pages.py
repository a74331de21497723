"""Pages of sessions: a conversation with its state. There is no list of sessions, so one is opened by its id.

A page reads the whole history, which is at most ``INFERFLEET_MAX_SESSION_BYTES`` long.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui.answers import as_json, message_parts
from inferfleet.gateway.ui.pages import UI_PATH, Pages
from inferfleet.producer.openai.refusals import not_found

TURNS: Final = 50
"""How many turns a page shows, the last ones unless it is asked for all."""


def session_pages(gateway: Gateway, pages: Pages) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/sessions")

    @router.get("")
    async def sessions(request: Request, id: str = "") -> Response:  # noqa: A002
        if id.strip():
            return RedirectResponse(f"{UI_PATH}/sessions/{quote(id.strip(), safe='')}", HTTPStatus.SEE_OTHER)
        return pages.page(request, "sessions.html")

    @router.get("/{session_id:path}")
    async def session(request: Request, session_id: str, every: bool = False) -> Response:
        handle = gateway.fleet_of(request).session(session_id)
        record = await handle.get()
        if record is None:
            raise not_found(f"There is no session {session_id[:128]!r}.", code="session_not_found")
        turns = await handle.turns()
        version, state = await handle.state()
        shown = turns if every else turns[-TURNS:]
        return pages.page(
            request,
            "session.html",
            id=session_id,
            session=record,
            turns=[(turn, list(message_parts(turn.messages))) for turn in shown],
            first=len(turns) - len(shown) + 1,
            state=as_json(state) if version else None,
        )

    return router
