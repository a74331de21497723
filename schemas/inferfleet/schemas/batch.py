"""The lines of a batch's files, in the form of OpenAI's Batch API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.wire_model import WireModel


class BatchRequestLine(WireModel):
    """A line of the input: one request. ``custom_id`` is the caller's name for it, unique in its file."""

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"] = "POST"
    url: Endpoint
    body: dict[str, Any]


class BatchResponse(WireModel):
    """The response to a request. ``request_id`` is the id of its job."""

    status_code: int = 200
    request_id: str
    body: dict[str, Any]


class BatchLineError(WireModel):
    """Why a line has no response. ``line`` is its number in the input, counted from 1."""

    code: str
    message: str
    line: Annotated[int, Field(ge=1)]


class BatchOutputLine(WireModel):
    """A line of the output, which has a ``response``, or of the error file, which has an ``error``.

    ``custom_id`` is ``None`` if the line of the input is not a request.
    """

    id: str
    custom_id: str | None
    response: BatchResponse | None = None
    error: BatchLineError | None = None
