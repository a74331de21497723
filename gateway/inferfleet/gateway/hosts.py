"""Refuses requests to a loopback address that name another host, or that a page of another host sends.

A page in a browser on the same machine can make its own name resolve to a loopback address. Its requests then
look to the browser as if they went to the page's own server, so that it may send JSON and read the answers.
Without that it may still send requests that have no body, or that of a form, and cannot read the answers.
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from inferfleet.gateway.refusal_answer import RefusalAnswer
from inferfleet.gateway.settings import is_loopback
from inferfleet.producer.openai.refusals import Refusal


class OnlyLoopbackHosts:
    """Middleware that answers only requests whose ``Host`` is a loopback address or ``localhost``.

    So is their ``Origin``, if a browser has sent it. A page on another port may be a tool of the same person.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        app = self._app
        if not _is_loopback(host):
            app = _refused_host(host)
        elif origin is not None and not _is_loopback(origin.partition("://")[2]):
            app = _refused_origin(origin)
        await app(scope, receive, send)


def is_own_origin(headers: Headers) -> bool | None:
    """Return whether a page of the host that a request names has sent it; ``None`` if it has no origin."""
    origin = headers.get("origin")
    return None if origin is None else origin.partition("://")[2] == headers.get("host")


def foreign_form(headers: Headers) -> str:
    """Say why a form is not one of our own pages'."""
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is None:
        return "this form has no header Origin, which browsers send with each form"
    return (
        f"a page of {origin[:128]!r} sent this form to {host[:128]!r}: only the gateway's own pages may; "
        "a proxy in between has to forward the header Host unchanged"
    )


def _is_loopback(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _refused_host(host: str) -> ASGIApp:
    refusal = Refusal(
        status=HTTPStatus.FORBIDDEN,
        code="forbidden_host",
        message=f"the header Host names {host[:128]!r}, which is not a loopback address; this gateway serves "
        "only its own machine (INFERFLEET_ALLOW_ANONYMOUS)",
    )
    return RefusalAnswer(refusal)


def _refused_origin(origin: str) -> ASGIApp:
    refusal = Refusal(
        status=HTTPStatus.FORBIDDEN,
        code="forbidden_origin",
        message=f"a page of {origin[:128]!r} sent this; without API keys, this gateway serves only pages of "
        "its own machine",
    )
    return RefusalAnswer(refusal)
