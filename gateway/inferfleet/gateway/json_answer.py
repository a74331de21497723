"""An answer in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Response


def json_answer(
    content: Any, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """Make an answer in JSON."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
