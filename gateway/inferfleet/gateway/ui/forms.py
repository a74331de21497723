"""Reads a form, which only our own pages may send."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from fastapi import Request

from inferfleet.gateway.bodies import refused_unread
from inferfleet.gateway.hosts import foreign_form, is_own_origin
from inferfleet.gateway.settings import GatewaySettings

MOST_BYTES: Final = 64 * 1024
MOST_FIELDS: Final = 50


async def read_form(request: Request, settings: GatewaySettings) -> dict[str, str]:
    """Read a form.

    Browsers add the cookie to what pages of the same site send, and always name the origin of a form, so
    one without an origin is refused, too.

    Raises:
        RefusedError: Another origin has sent it, or it is too large, too slow, or unreadable.

    """
    if not is_own_origin(request.headers):
        raise refused_unread(HTTPStatus.FORBIDDEN, "forbidden_origin", foreign_form(request.headers))
    body = bytearray()
    try:
        async with asyncio.timeout(settings.read_timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise refused_unread(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", "the form is too large"
                    )
    except TimeoutError as error:
        raise refused_unread(
            HTTPStatus.REQUEST_TIMEOUT, "body_timeout", "the form arrived too slowly"
        ) from error
    try:
        return dict(parse_qsl(body.decode(), max_num_fields=MOST_FIELDS))
    except ValueError as error:
        raise refused_unread(HTTPStatus.BAD_REQUEST, "invalid_request", "the form cannot be read") from error
