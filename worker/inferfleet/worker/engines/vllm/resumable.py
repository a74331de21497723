"""Which answers can be continued by another attempt from their token ids. Pure, and needs no vLLM."""

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
"""Fields that need more of the earlier answer than its tokens, or count what is answer and what is prompt.
Each with the values that are as good as none: a 0 often is not."""


def resumable(endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
    """Say whether an answer can go on from its token ids, for any body, also one that vLLM will refuse.

    It can when it is one text that depends on the tokens alone. A grammar would start again, be it that of
    a response format or of a forced tool call; penalties would forget what was said.
    """
    if ENDPOINTS[endpoint].generated is None or body.get("n") not in (None, 1):
        return False
    # In a completion logprobs is a number, and to vLLM false is 0.
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
    # To Python, False is 0: here, one is a wish and the other is none.
    return value is not None and not any(
        value == each and isinstance(value, bool) is isinstance(each, bool) for each in neutral
    )


def _forces_tools(body: Mapping[str, Any]) -> bool:
    """Whether vLLM holds a tool call to a grammar."""
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
