"""Finds out who sends a request, by its API key."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from inferfleet.gateway.access_log import UNCOUNTED
from inferfleet.gateway.api_keys import KeyRing
from inferfleet.gateway.callers import Caller, set_caller
from inferfleet.gateway.refusal_answer import RefusalAnswer
from inferfleet.gateway.ui.pages import UI_PATH
from inferfleet.producer.openai.refusals import Refusal

SCHEME: Final = "bearer"


class OnlyKeys:
    """Middleware that answers only requests with an API key. Health and the API's description need none.

    The web page finds out itself who sends a request.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and not _needs_none(scope["path"]):
            scheme, _, presented = Headers(scope=scope).get("authorization", "").partition(" ")
            presented = presented.strip() if scheme.lower() == SCHEME else ""
            key = self._keys.find(presented) if presented else None
            if key is None:
                await _refused(presented)(scope, receive, send)
                return
            set_caller(scope, Caller(key=key))
        await self._app(scope, receive, send)


def _needs_none(path: str) -> bool:
    return path == UI_PATH or path.startswith((*UNCOUNTED, f"{UI_PATH}/"))


def _refused(presented: str) -> ASGIApp:
    refusal = Refusal(
        status=HTTPStatus.UNAUTHORIZED,
        code="invalid_api_key" if presented else "missing_api_key",
        message="the API key is unknown, or was revoked or replaced"
        if presented
        else "send an API key: Authorization: Bearer KEY",
    )
    return RefusalAnswer(refusal, **{"www-authenticate": "Bearer"})
