"""Decides which answers another attempt can resume from their token ids. Pure; does not need vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint

_LOOK_BACK: Final[Mapping[str, tuple[Any, ...]]] = {
    "bad_words": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logprob_token_ids": ([],),
    "presence_penalty": (0,),
    "prompt_embeds": ([],),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "structured_outputs": (),
    "thinking_token_budget": (),
}
"""Fields that need more of the earlier answer than its tokens, or that distinguish answer and prompt. Each
has the values that mean the same as no value, which 0 often does not."""


def resumable(endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
    """Return whether an answer can be resumed from its token ids. Works for any body, even a refused one.

    An answer can be resumed if it is one text that depends only on its tokens. A grammar, of a response
    format or of a forced tool call, would start again; penalties would forget the earlier tokens.
    """
    if ENDPOINTS[endpoint].generated is None or body.get("n") not in (None, 1):
        return False
    # In a completion ``logprobs`` is a number, and vLLM reads false as 0.
    if _says_something(body.get("logprobs"), (False,) if endpoint is Endpoint.CHAT else ()):
        return False
    if any(_says_something(body.get(field), neutral) for field, neutral in _LOOK_BACK.items()):
        return False
    if body.get("response_format") not in (None, {"type": "text"}):
        return False
    match body.get("prompt"):
        case [str() | list(), _, *_]:
            return False
        case _:
            return not _forces_tools(body)


def _says_something(value: Any, neutral: tuple[Any, ...]) -> bool:
    # In Python False == 0, but here one of them requests something and the other does not.
    return value is not None and not any(
        value == each and isinstance(value, bool) is isinstance(each, bool) for each in neutral
    )


def _forces_tools(body: Mapping[str, Any]) -> bool:
    """Return whether vLLM constrains a tool call by a grammar."""
    match body.get("tool_choice"):
        case "none":
            return False
        case None | "auto":
            return body.get("parallel_tool_calls") is False or _any_strict(body.get("tools"))
        case _:
            return True


def _any_strict(tools: Any) -> bool:
    match tools:
        case [{"function": {"strict": True}}, *_]:
            return True
        case [_, *rest]:
            return _any_strict(rest)
        case _:
            return False
