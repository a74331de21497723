"""Counts open requests and logs each one: a line without headers, bodies or queries."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus
from typing import Final

from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferfleet.gateway.callers import caller_in
from inferfleet.producer.openai.refusals import JOB_HEADER, RETRY_AFTER_S, Refusal

logger = logging.getLogger(__name__)

UNCOUNTED: Final = ("/health/", "/docs", "/openapi.json")
"""The beginnings of the paths that are neither counted nor logged."""

MAX_PATH_CHARS: Final = 200

CLIENT_GONE: Final = 499
"""The status in the log for a client that went away before its answer. Nobody receives it."""


class OpenRequests:
    """Middleware that answers at most ``most`` requests at a time, and logs each."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self._app = app
        self._most = most
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"].startswith(UNCOUNTED):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        began = time.monotonic()
        self._open += 1
        try:
            app = self._app if self._open <= self._most else _full(self._most)
            await app(scope, receive, answer.send)
        finally:
            self._open -= 1
            client = scope.get("client")
            logger.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"][:MAX_PATH_CHARS],
                    "status": answer.status,
                    "complete": answer.complete,
                    "duration_s": round(time.monotonic() - began, 4),
                    "job_id": answer.job_id,
                    "client": client[0] if client else None,
                    **_of_caller(scope),
                },
            )


def _of_caller(scope: Scope) -> dict[str, str]:
    caller = caller_in(scope)
    if caller is None or caller.key is None:
        return {}
    return {"tenant": caller.tenant, "key_id": caller.key.id}


class _Answer:
    """What was sent. Without a status, the client had gone away before."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.job_id: str | None = None
        self.complete = False
        """Whether all of it was sent, and somebody was there."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.job_id = Headers(raw=message["headers"]).get(JOB_HEADER)
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = self.status != CLIENT_GONE


def _full(most: int) -> ASGIApp:
    refusal = Refusal(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code="too_many_open_requests",
        message=f"this gateway has {most} open requests, which is its limit (INFERFLEET_MAX_OPEN_REQUESTS); "
        "try again later",
        retry=True,
        after_s=RETRY_AFTER_S,
        closes=True,
    )
    return Response(refusal.body(), refusal.status, refusal.headers())
