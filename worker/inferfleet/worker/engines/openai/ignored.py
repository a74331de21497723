"""Notices members of a request that the server has ignored, where its answer shows that. Pure.

Servers that do not know a member mostly ignore it, and their answer looks like a good one. What cannot be
told from an answer, such as a ``seed`` or a ``temperature`` that had no effect, is not noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from inferfleet.schemas import Endpoint
from inferfleet.schemas.endpoints import ENDPOINTS

Member = Literal["dimensions", "logprobs", "prompt_logprobs", "response_format", "stop", "tool_choice"]
"""The members of which it can be told."""

_JUDGED: Final = frozenset({"stop", "length", "tool_calls"})
"""The values of ``finish_reason`` of a choice that is what the model said: none was filtered, for example."""

_KEEP_THE_STOP: Final = ("echo", "include_stop_str_in_output", "min_tokens", "no_stop_trim")
"""With these members, the text may have a stop string."""


def ignored(
    endpoint: Endpoint, body: Mapping[str, Any], response: Mapping[str, Any]
) -> tuple[Member, str] | None:
    """Return the member of a request that the server has ignored, and what shows that; ``None`` for none."""
    if endpoint is Endpoint.EMBEDDINGS:
        return _of_embeddings(body, response)
    if ENDPOINTS[endpoint].generated is None:
        return None
    choices: list[Mapping[str, Any]] = response["choices"]
    if body.get("prompt_logprobs") and not any(
        part.get("prompt_logprobs") is not None for part in (response, *choices)
    ):
        return "prompt_logprobs", "the answer has none"
    for choice in choices:
        if choice.get("finish_reason") in _JUDGED and (found := _of_choice(endpoint, body, choice)):
            return found
    return None


def _of_choice(
    endpoint: Endpoint, body: Mapping[str, Any], choice: Mapping[str, Any]
) -> tuple[Member, str] | None:
    answer = ENDPOINTS[endpoint].generated
    assert answer is not None  # noqa: S101 - the caller has looked
    message: Mapping[str, Any] = choice.get("message") or {}
    if message.get("refusal"):
        return None
    text, calls = answer.text(choice), cast("list[Mapping[str, Any]]", message.get("tool_calls") or [])
    if text and not calls and body.get("logprobs") not in (None, False) and not choice.get("logprobs"):
        return "logprobs", "the answer has none"
    if text and any(stop in text for stop in _stops(body)):
        return "stop", "the answer has text of it"
    if choice.get("finish_reason") == "length":
        return None
    if body.get("tools") and (found := _of_tools(body.get("tool_choice"), calls)):
        return "tool_choice", found
    if text and not calls and not body.get("stop") and (found := _of_format(body, text)):
        return "response_format", found
    return None


def _stops(body: Mapping[str, Any]) -> list[str]:
    if any(body.get(member) for member in _KEEP_THE_STOP):
        return []
    stop: str | list[str] = body.get("stop") or []
    return list(filter(None, [stop] if isinstance(stop, str) else stop))


def _of_tools(choice: Any, calls: list[Mapping[str, Any]]) -> str | None:
    match choice:
        case "required" if not calls:
            return "the answer calls no tool"
        case {"type": "function", "function": {"name": str() as name}} if name not in {
            call["function"]["name"] for call in calls
        }:
            return "the answer does not call the tool that it names"
        case _:
            return None


def _of_format(body: Mapping[str, Any], text: str) -> str | None:
    asked: Mapping[str, Any] = body.get("response_format") or {}
    kind = asked.get("type")
    if kind not in {"json_object", "json_schema"}:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "the answer is not JSON"
    return (
        "the answer is not a JSON object" if kind == "json_object" and not isinstance(value, dict) else None
    )


def _of_embeddings(body: Mapping[str, Any], response: Mapping[str, Any]) -> tuple[Member, str] | None:
    asked = body.get("dimensions")
    if asked is None:
        return None
    for item in response["data"]:
        vector = item.get("embedding")
        # One in base64 has four bytes for each number.
        found = len(vector.rstrip("=")) * 3 // 16 if isinstance(vector, str) else len(vector)
        if found != asked:
            return "dimensions", f"a vector has {found} of them, not {asked}"
    return None
