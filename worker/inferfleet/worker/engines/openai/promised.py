"""What a server has to answer: how many choices or vectors, in which member, and what it has counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from inferfleet.schemas import Endpoint, Usage
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.work import count_prompts
from inferfleet.worker.engines.openai.errors import MalformedError, fewer

NOT_WHOLE: Final = frozenset({None, "", "abort", "error"})
"""The values of ``finish_reason`` of a choice that has not ended as it should."""

MOST_COUNTED: Final = 10_000_000
"""The largest believable number of tokens of an answer. The journal has an entry for each."""


def promised(endpoint: Endpoint, body: Mapping[str, Any]) -> int:
    """Return how many choices, or at least how many vectors or scores, a request is answered with."""
    match endpoint:
        case Endpoint.CHAT:
            return body.get("n") or 1
        case Endpoint.COMPLETIONS:
            return (body.get("n") or 1) * count_prompts(body)
        case Endpoint.EMBEDDINGS:
            return count_prompts({"prompt": body.get("input") or body.get("messages")})
        case Endpoint.RERANK | Endpoint.SCORE:
            return 1


def answered(
    host: str, endpoint: Endpoint, body: Mapping[str, Any], response: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the choices, vectors or scores of a response that was not streamed.

    Raises:
        MalformedError: It has none, or a choice that has failed.
        GenerationError: It has fewer than the request asks for.

    """
    if ENDPOINTS[endpoint].generated is not None:
        member = "choices"
    else:
        member = "results" if endpoint is Endpoint.RERANK else "data"
    most = promised(endpoint, body)
    match response.get(member):
        case [_, *_] as items if all(isinstance(each, dict) for each in items):
            pass
        case _:
            raise MalformedError(f"{host} answers {endpoint} without {member!r}")
    found = cast("list[dict[str, Any]]", items)
    for each in found:
        reason = each.get("finish_reason")
        if reason and reason in NOT_WHOLE:
            raise MalformedError(f"{host} has not completed its answer: finish_reason {reason!r}")
    if len(found) < most:
        raise fewer(host, f"{len(found)} of {most} {member}", body)
    return found


def counted(response: Mapping[str, Any]) -> Usage:
    """Return what a response, or the event of a stream, says of its tokens.

    Raises:
        ValueError: It has something else in the place of a number, or an absurd number.

    """
    told: Mapping[str, Any] = response.get("usage") or {}
    details: Mapping[str, Any] = told.get("prompt_tokens_details") or {}
    usage = Usage(
        prompt_tokens=told.get("prompt_tokens") or 0,
        completion_tokens=told.get("completion_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
    )
    if usage.completion_tokens > MOST_COUNTED:
        raise ValueError("no answer has so many tokens")
    return usage


def in_numbers(told: Mapping[str, Any], usage: Usage) -> dict[str, Any]:
    """Return the ``usage`` of a response, with numbers where the server has something like numbers."""
    numbers = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    as_told = {
        name: value if isinstance(value, int) else numbers.get(name, value) for name, value in told.items()
    }
    return as_told or numbers
