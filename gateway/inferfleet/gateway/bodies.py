"""Reads a request's body, within limits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from fastapi import Request

from inferfleet.gateway.settings import GatewaySettings
from inferfleet.producer.openai.refusals import Refusal, RefusedError

DISCARD_S: Final = 2.0
"""For how long the rest of a body that is too large is read, so that the client reads the answer."""


OPTIONS_BYTES: Final = 64 * 1024
"""How much larger than its body a job may be."""


async def read_body(request: Request, settings: GatewaySettings, *, many: bool = False) -> bytes:
    """Read the whole body: one job, or with ``many``, an array of them.

    A page in a browser on the same machine can send any body but JSON to a loopback address, so only JSON is
    read.

    Raises:
        RefusedError: The body is not JSON by its type, too large, or came too slowly.

    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _refused(
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
                raise await _too_large(request, most, setting)
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise await _too_large(request, most, setting)
    except TimeoutError as error:
        raise _refused(
            HTTPStatus.REQUEST_TIMEOUT,
            "body_timeout",
            f"the body took longer than {settings.read_timeout_s:g} s",
        ) from error
    return bytes(body)


def job_bytes(settings: GatewaySettings) -> int:
    """Return how large one job may be, with its options."""
    return settings.max_body_bytes + OPTIONS_BYTES


async def _too_large(request: Request, most: int, setting: str) -> RefusedError:
    # A connection that is closed while the client still sends is reset, and the answer lost. Some ask first.
    if "expect" not in request.headers:
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while (await request.receive()).get("more_body"):
                    pass
    return _refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"the body is larger than {most:,} bytes ({setting})",
    )


def _refused(status: HTTPStatus, code: str, message: str) -> RefusedError:
    # The rest of the body is not read, so the connection cannot be used again.
    return RefusedError(Refusal(status=status, code=code, message=message, closes=True))
