"""Makes a page of a template. Whatever a template prints is escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

from fastapi import Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui import words
from inferfleet.schemas.prices import plain
from inferfleet.schemas.printable import printable
from inferfleet.wire.redis.clock import moment_of

UI_PATH: Final = "/ui"

HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    # With no-referrer, browsers send forms without the Origin that tells our own pages from others.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
"""The headers of every answer. No page has a script or a style of its own, so none can be slipped in."""

_FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "amount": plain,
    "at_ms": moment_of,
    "count": words.count,
    "lasting": words.lasting,
    "moment": words.moment,
    "percent": words.percent,
    "path": partial(quote, safe=""),
    # Text of jobs may have escape sequences; a browser ignores them, but people should see them.
    "printable": printable,
    "priority_name": words.priority_name,
    "share": words.share,
    "short": words.short,
    "size": words.size,
}


def came_from(request: Request) -> str:
    """Return the path of the page of ours that a browser has sent a request from, or nothing."""
    try:
        sender = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return ""
    path = sender.path + (f"?{sender.query}" if sender.query else "")
    return path if path.startswith(f"{UI_PATH}/") else ""


class SecureHeaders:
    """Middleware that adds ``HEADERS`` to each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        await self._app(scope, receive, send_secured)


class Pages:
    """Makes the pages of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._environment = Environment(
            loader=PackageLoader("inferfleet.gateway.ui"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters: dict[str, Any] = self._environment.filters
        filters.update(_FILTERS)

    def page(
        self, request: Request, template: str, status: HTTPStatus = HTTPStatus.OK, /, **values: Any
    ) -> Response:
        """Render a template. It also gets ``caller``, and whether the caller ``sees_fleet``."""
        keys = self._gateway.keys
        text = self._environment.get_template(template).render(
            ui=UI_PATH,
            path=request.url.path,
            caller=request.state.caller if keys is not None else None,
            sees_fleet=keys is None,
            has_batches=self._gateway.files is not None,
            now=self._gateway.trusted_fleet.pipeline.clock.now(),
            **values,
        )
        return Response(text, status, {"cache-control": "no-store"}, media_type="text/html")
