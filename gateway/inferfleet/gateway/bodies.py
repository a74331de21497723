"""Reads a request's body, within limits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferfleet.gateway.settings import GatewaySettings
from inferfleet.producer.openai.refusals import Refusal, RefusedError

DISCARD_S: Final = 2.0
"""For how long the rest of a body is read that is not wanted, so that the client reads the answer."""

JSON_TYPES: Final = ("application/json", "application/merge-patch+json")

OPTIONS_BYTES: Final = 64 * 1024
"""How much larger than its body a job may be."""


async def read_body(request: Request, settings: GatewaySettings, *, many: bool = False) -> bytes:
    """Read the whole body: one job, or with ``many``, an array of them.

    A page in a browser on the same machine can send any body but JSON to a loopback address, so only JSON is
    read.

    Raises:
        RefusedError: The body is not JSON by its type, too large, or arrived too slowly.

    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in JSON_TYPES:
        raise refused_unread(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_json", "send Content-Type: application/json, and JSON"
        )
    most, setting = settings.max_request_bytes, "INFERFLEET_MAX_REQUEST_BYTES"
    if not many and (one := job_bytes(settings)) < most:
        most, setting = one, "INFERFLEET_MAX_BODY_BYTES"
    declared = request.headers.get("content-length", "")
    body = bytearray()
    try:
        async with asyncio.timeout(settings.read_timeout_s):
            if declared.isdecimal() and int(declared) > most:
                raise _too_large(most, setting)
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _too_large(most, setting)
    except TimeoutError as error:
        raise refused_unread(
            HTTPStatus.REQUEST_TIMEOUT,
            "body_timeout",
            f"the body took longer than {settings.read_timeout_s:g} s",
        ) from error
    return bytes(body)


def refused_unread(status: HTTPStatus, code: str, message: str) -> RefusedError:
    """Make a refusal. The rest of the body is not read, so the connection cannot be used again."""
    return RefusedError(Refusal(status=status, code=code, message=message, closes=True))


def job_bytes(settings: GatewaySettings) -> int:
    """Return how large one job may be, with its options."""
    return settings.max_body_bytes + OPTIONS_BYTES


def _too_large(most: int, setting: str) -> RefusedError:
    return refused_unread(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"the body is larger than {most:,} bytes ({setting})",
    )


class UnreadBodies:
    """Middleware that reads what is left of a body before the answer.

    A connection that is closed while the client still sends is reset, and the answer lost. Some ask first.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        left = scope["type"] == "http" and _sends_body(Headers(scope=scope))

        async def receive_noted() -> Message:
            nonlocal left
            message = await receive()
            left = left and message.get("more_body", False)
            return message

        async def send_behind(message: Message) -> None:
            if left and message["type"] == "http.response.start":
                with suppress(TimeoutError):
                    async with asyncio.timeout(DISCARD_S):
                        while left:
                            await receive_noted()
            await send(message)

        await self._app(scope, receive_noted, send_behind)


def _sends_body(headers: Headers) -> bool:
    return ("content-length" in headers or "transfer-encoding" in headers) and "expect" not in headers
