"""The check of an OpenAI request body before its job is accepted.

Known fields are typed and bounded as OpenAI's reference has them; unknown ones pass through to the
engine untouched, so that vLLM's own extensions work. The body itself is never rewritten: the models
only judge it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, cast
from uuid import UUID

import orjson
from pydantic import TypeAdapter, ValidationError

from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import Endpoint
from inferfleet.schemas.openai_embeddings import EmbeddingRequest
from inferfleet.schemas.openai_requests import ChatCompletionRequest, CompletionRequest
from inferfleet.schemas.problems import QUOTED, describe, kind

MODELS: Final[Mapping[Endpoint, TypeAdapter[Any]]] = {
    Endpoint.CHAT: TypeAdapter(ChatCompletionRequest),
    Endpoint.COMPLETIONS: TypeAdapter(CompletionRequest),
    Endpoint.EMBEDDINGS: TypeAdapter(EmbeddingRequest),
}
"""The body that each endpoint takes."""

_STRICTLY_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def check_request(endpoint: Endpoint, body: object, *, max_body_bytes: int) -> dict[str, Any]:
    """Judge a request body, and return the same object if it is good.

    Costs some ten microseconds for a short chat. Limits the body's length as JSON in bytes.

    Raises:
        InvalidJobError: The body breaks OpenAI's contract, is not JSON, or is too long. The message has
            a line for each problem, and no text of a prompt.

    """
    if not isinstance(body, dict):
        raise InvalidJobError(f"body: must be an object, not {kind(body)}")
    body = cast("dict[str, Any]", body)
    size = _json_bytes(body)
    if size > max_body_bytes:
        raise InvalidJobError(
            f"the request body is {size:,} bytes; the limit is {max_body_bytes:,} (INFERFLEET_MAX_BODY_BYTES)"
        )
    try:
        MODELS[endpoint].validate_python(body)
    except ValidationError as error:
        # Not chained: pydantic's own words may quote a field that holds text by mistake.
        raise InvalidJobError(describe(error, root="body", data=body)) from None
    return body


def job_error(error: ValidationError) -> InvalidJobError:
    """Translate what ``Job`` refuses (a bad pool name, priority 11) into the same kind of sentences."""
    return InvalidJobError(describe(error))


def _json_bytes(body: dict[str, Any]) -> int:
    try:
        text = orjson.dumps(body, option=_STRICTLY_JSON)
    except TypeError as error:
        problem = "body: is nested too deeply" if "Recursion" in str(error) else _not_json(body, "body")
        raise InvalidJobError(problem or f"body: is not JSON ({error})") from error
    # orjson writes NaN and infinity as null; the search is cheap and spares most bodies the walk.
    if b"null" in text and (problem := _not_json(body, "body")):
        raise InvalidJobError(problem)
    return len(text)


def _not_json(value: Any, path: str) -> str | None:
    """Find the first value that JSON has no form for."""
    match value:
        case None | bool() | int() | str() | Enum() | UUID():
            return None
        case float():
            return None if math.isfinite(value) else f"{path}: {value} is not a JSON number"
        case dict():
            items = cast("dict[object, Any]", value)
            if not all(isinstance(key, str) for key in items):
                return f"{path}: has a key that is not a string"
            children = [(f"{path}.{str(key)[:QUOTED]}", child) for key, child in items.items()]
        case list() | tuple():
            entries = cast("Sequence[Any]", value)
            children = [(f"{path}[{position}]", child) for position, child in enumerate(entries)]
        case _:
            return f"{path}: the type {type(value).__name__} has no form in JSON"
    return next(filter(None, (_not_json(child, where) for where, child in children)), None)
