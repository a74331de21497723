"""Limits open requests, and logs and measures each one: a line without headers, bodies or queries."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferfleet.gateway.callers import caller_in
from inferfleet.gateway.metrics import NO_ROUTE, GatewayMetrics
from inferfleet.gateway.refusal_answer import RefusalAnswer, refusal_in
from inferfleet.producer.openai.refusals import JOB_HEADER, RETRY_AFTER_S, Refusal

logger = logging.getLogger(__name__)

UNCOUNTED: Final = ("/health/", "/docs", "/openapi.json")
"""The beginnings of the paths that are neither counted nor logged."""

MAX_PATH_CHARS: Final = 200

CLIENT_GONE: Final = 499
"""The status in the log for a client that went away before its answer. Nobody receives it."""


class OpenRequests:
    """Middleware that answers at most ``most`` requests at a time, and logs and measures each."""

    def __init__(self, app: ASGIApp, *, most: int, metrics: GatewayMetrics) -> None:
        self._app = app
        self._most = most
        self._metrics = metrics
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"].startswith(UNCOUNTED):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._metrics)
        self._open += 1
        self._metrics.open_requests.set(self._open)
        try:
            app = self._app if self._open <= self._most else _full(self._most)
            await app(scope, receive, answer.send)
        except Exception:
            answer.fail()
            raise
        finally:
            self._open -= 1
            self._metrics.open_requests.set(self._open)
            answer.count(scope)
            client = scope.get("client")
            logger.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"][:MAX_PATH_CHARS],
                    "status": answer.status,
                    "complete": answer.complete,
                    "duration_s": round(answer.age_s, 4),
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

    def __init__(self, send: Send, metrics: GatewayMetrics) -> None:
        self._send = send
        self._metrics = metrics
        self._began = time.monotonic()
        self._started_s: float | None = None
        self._streams = False
        self._failed = False
        self.status: int | None = None
        self.job_id: str | None = None
        self.complete = False
        """Whether all of it was sent, and somebody was there."""

    @property
    def age_s(self) -> float:
        """How long ago the request came."""
        return time.monotonic() - self._began

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start(message["status"], Headers(raw=message["headers"]))
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = self.status != CLIENT_GONE

    def fail(self) -> None:
        """Note that the application has failed, whose answer then comes from the server."""
        self._failed = True
        if self.status is None:
            self.status = HTTPStatus.INTERNAL_SERVER_ERROR

    def count(self, scope: Scope) -> None:
        """Count the request, which has ended."""
        metrics, caller = self._metrics, caller_in(scope)
        method, route = scope["method"], getattr(scope.get("route"), "path_format", NO_ROUTE)
        if self._streams:
            metrics.open_streams.dec()
        metrics.request_ended(
            method=method,
            route=route,
            status=self.status or CLIENT_GONE,
            tenant="" if caller is None else caller.tenant,
            started_s=self._started_s,
            ended_s=self.age_s,
        )
        if (code := "internal" if self._failed else refusal_in(scope)) is not None:
            metrics.refused(code)
        elif not self.complete:
            metrics.client_gone(method=method, route=route)

    def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        self.job_id = headers.get(JOB_HEADER)
        self._started_s = self.age_s
        if headers.get("content-type", "").startswith("text/event-stream"):
            self._streams = True
            self._metrics.open_streams.inc()


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
    return RefusalAnswer(refusal)
