"""Checks a request body before its job is accepted.

Known fields have the types and bounds of vLLM and of OpenAI's reference. Unknown fields pass through to the
engine unchanged, so that vLLM's extensions work. The check never rewrites the body.
"""

from __future__ import annotations

from typing import Any, cast

import orjson
from pydantic import ValidationError

from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.json_values import STRICTLY_JSON, json_problem
from inferfleet.schemas.problems import describe, kind


def check_request(
    endpoint: Endpoint, body: object, *, max_body_bytes: int, size: int | None = None
) -> dict[str, Any]:
    """Check a request body, and return the same object if it is valid.

    Takes about ten microseconds for a short chat. Also limits the body's length as JSON in bytes; pass that
    as ``size`` if you know that the body is JSON.

    Raises:
        InvalidJobError: The body breaks its endpoint's contract, is not JSON, or is too long. The message has
            a line for each problem, and no text of a prompt.

    """
    if not isinstance(body, dict):
        raise InvalidJobError(f"body: must be an object, not {kind(body)}")
    body = cast("dict[str, Any]", body)
    if size is None:
        size = _json_bytes(body)
    if size > max_body_bytes:
        raise InvalidJobError(
            f"the request body is {size:,} bytes; the limit is {max_body_bytes:,} (INFERFLEET_MAX_BODY_BYTES)"
        )
    try:
        ENDPOINTS[endpoint].request.validate_python(body)
    except ValidationError as error:
        # Not chained: pydantic's message may quote a field that holds text by mistake.
        raise InvalidJobError(describe(error, root="body", data=body)) from None
    return body


def job_error(error: ValidationError, *, data: object = None) -> InvalidJobError:
    """Turn errors of the model ``Job`` (a bad pool name, priority 11) into the same kind of sentences."""
    return InvalidJobError(describe(error, data=data))


def _json_bytes(body: dict[str, Any]) -> int:
    try:
        text = orjson.dumps(body, option=STRICTLY_JSON)
    except TypeError as error:
        raise InvalidJobError(json_problem(body, "body") or f"body: is not JSON ({error})") from error
    # orjson writes NaN and infinity as null; the search is cheap and spares most bodies the walk.
    if b"null" in text and (problem := json_problem(body, "body")):
        raise InvalidJobError(problem)
    return len(text)
