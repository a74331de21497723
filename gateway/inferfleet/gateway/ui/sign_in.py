"""Signs people in with their API key, which a cookie keeps.

Browsers send the cookie to ``/ui`` only, and the API does not look at it. A key that was revoked or
replaced is refused, as in the API.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from inferfleet.gateway.callers import ANYBODY, Caller, set_caller
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui.forms import read_form
from inferfleet.gateway.ui.pages import UI_PATH, Pages, came_from

COOKIE: Final = "inferfleet_key"
SIGN_IN_PATH: Final = f"{UI_PATH}/sign-in"


class SignedOutError(Exception):
    """The request needs an API key, and has no valid one."""


def signed_in(gateway: Gateway, request: Request) -> None:
    """Find out who sends a request.

    Raises:
        SignedOutError: The gateway has API keys, and the request has no valid one.

    """
    if gateway.keys is None:
        request.state.caller = ANYBODY
        return
    presented = request.cookies.get(COOKIE)
    key = gateway.keys.find(presented) if presented else None
    if key is None:
        raise SignedOutError
    request.state.caller = caller = Caller(key=key)
    set_caller(request.scope, caller)


def to_sign_in(request: Request) -> Response:
    """Send somebody to the page that asks for the key, and afterwards back here, or to the form's page."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    back = here if request.method == "GET" else came_from(request)
    where = f"{SIGN_IN_PATH}?next={quote(back, safe='')}" if back else SIGN_IN_PATH
    return RedirectResponse(where, HTTPStatus.SEE_OTHER, {"cache-control": "no-store"})


def sign_in_routes(gateway: Gateway, pages: Pages) -> APIRouter:
    """Make the routes, which need no key."""
    router = APIRouter()

    @router.get("/sign-in")
    async def form(request: Request, next: str = "") -> Response:  # noqa: A002
        request.state.caller = ANYBODY
        if gateway.keys is None:
            return _to(UI_PATH + "/")
        return pages.page(request, "sign_in.html", next=_own(next), problem=None)

    @router.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        request.state.caller = ANYBODY
        if gateway.keys is None:
            return _to(UI_PATH + "/")
        given = await read_form(request, gateway.settings)
        presented, back = given.get("key", "").strip(), _own(given.get("next", ""))
        if gateway.keys.find(presented) is None:
            problem = "This API key is unknown, or was revoked or replaced."
            return pages.page(request, "sign_in.html", HTTPStatus.UNAUTHORIZED, next=back, problem=problem)
        answer = _to(back)
        answer.set_cookie(
            COOKIE, presented, path=UI_PATH, secure=_is_secure(request), httponly=True, samesite="strict"
        )
        return answer

    @router.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        await read_form(request, gateway.settings)
        answer = _to(SIGN_IN_PATH if gateway.keys is not None else UI_PATH + "/")
        answer.delete_cookie(
            COOKIE, path=UI_PATH, secure=_is_secure(request), httponly=True, samesite="strict"
        )
        return answer

    return router


def _to(path: str) -> Response:
    return RedirectResponse(path, HTTPStatus.SEE_OTHER, {"cache-control": "no-store"})


def _own(path: str) -> str:
    """Return a path of ours, whatever was given."""
    return path if path.startswith(f"{UI_PATH}/") else f"{UI_PATH}/"


def _is_secure(request: Request) -> bool:
    # A client that lies about this only keeps its own cookie from being sent.
    return "https" in {request.url.scheme, request.headers.get("x-forwarded-proto", "")}
