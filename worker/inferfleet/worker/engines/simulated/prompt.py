"""Prompts: how many tokens they have, and what an answer depends on.

The tokenizer counts a quarter of the UTF-8 bytes, rounded up, which is about right for English in common
vocabularies. A chat message adds 4 tokens for its role and separators, the opening of the answer 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from inferfleet.schemas import Endpoint
from inferfleet.schemas.said import text_of_part
from inferfleet.worker.engines.simulated.refusal import refusal
from inferfleet.worker.engines.simulated.vocabulary import PIECES, decode

_BYTES_PER_TOKEN: Final = 4
_MESSAGE_OVERHEAD_TOKENS: Final = 4
_ANSWER_OPENING_TOKENS: Final = 3

TextOrTokens = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. ``key`` is a digest of all that the answer depends on: history, tools, seed.

    ``text`` is what ``echo`` puts before the answer; a chat has none.
    """

    key: bytes
    tokens: int
    text: str = ""


def chat_prompt(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], seed: int | None
) -> Prompt:
    """Render a conversation, with everything in its messages that a model would see.

    Raises:
        GenerationError: A message has a part that is not text.

    """
    tokens = _ANSWER_OPENING_TOKENS + sum(map(_message_tokens, messages))
    if tools:
        tokens += _tokens_of(orjson.dumps(tools))
    return Prompt(_key(Endpoint.CHAT, messages, tools, seed), tokens)


def chat_tokens(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Return the tokens of a conversation, without the opening of the answer, as ``chat_prompt`` counts them.

    A prompt begins with those of the prompt before and its answer, if it continues the same conversation.
    """
    tokens = _pieces(orjson.dumps(tools)) if tools else []
    for message in messages:
        tokens += [str(message.get("role")).encode()] * _MESSAGE_OVERHEAD_TOKENS
        tokens += _pieces(_text_of(message).encode())
        if calls := message.get("tool_calls"):
            tokens += _pieces(orjson.dumps(calls))
    return tokens


def plain_prompts(
    endpoint: Endpoint, value: TextOrTokens | Sequence[TextOrTokens], seed: int | None
) -> tuple[Prompt, ...]:
    """Render a text or a list of token ids as one prompt, a list of either as several.

    Raises:
        GenerationError: A prompt is empty.

    """
    # A list of numbers is one prompt; the type of the first element decides, as validated before.
    items: Sequence[Any] = [value] if isinstance(value, str) or _is_token_ids(value) else value
    if not items or not all(items):
        raise refusal("a prompt must not be empty")
    return tuple(
        Prompt(
            key=_key(endpoint, item, (), seed),
            tokens=_tokens_of(item.encode()) if isinstance(item, str) else len(item),
            text=item if isinstance(item, str) else _text_of_ids(item),
        )
        for item in items
    )


def pair_prompts(queries: Sequence[str], documents: Sequence[str]) -> tuple[Prompt, ...]:
    """Render each document with its query as one prompt; a single query belongs to all documents.

    Raises:
        GenerationError: A pair is empty, or the numbers of queries and documents differ.

    """
    if len(queries) not in {1, len(documents)}:
        raise refusal(f"{len(queries)} texts cannot be compared with {len(documents)}")
    if len(queries) == 1:
        queries = [*queries] * len(documents)
    pairs = list(zip(queries, documents, strict=True))
    if not all(map(any, pairs)):
        raise refusal("a prompt must not be empty")
    return tuple(
        Prompt(
            key=_key(Endpoint.SCORE, pair, (), None), tokens=sum(_tokens_of(text.encode()) for text in pair)
        )
        for pair in pairs
    )


def _text_of_ids(ids: Sequence[int]) -> str:
    """Decode a prompt of token ids. Ids that are not in the vocabulary have no text."""
    return decode(tuple(id_ for id_ in ids if 0 <= id_ < len(PIECES)))


def _is_token_ids(value: Sequence[object]) -> bool:
    return bool(value) and isinstance(value[0], int)


def _message_tokens(message: Mapping[str, Any]) -> int:
    calls = message.get("tool_calls")
    called = _tokens_of(orjson.dumps(calls)) if calls else 0
    return _MESSAGE_OVERHEAD_TOKENS + _tokens_of(_text_of(message).encode()) + called


def _text_of(message: Mapping[str, Any]) -> str:
    content: str | list[dict[str, Any] | str] = message.get("content") or ""
    return content if isinstance(content, str) else "".join(map(_part_text, content))


def _part_text(part: Mapping[str, Any] | str) -> str:
    if isinstance(part, str):
        return part
    text = text_of_part(part)
    if text is None:
        raise refusal(f"it reads only text, and a message has a part of type {part.get('type')!r}")
    return text


def _tokens_of(text: bytes) -> int:
    return -(-len(text) // _BYTES_PER_TOKEN)


def _pieces(text: bytes) -> list[bytes]:
    return [text[at : at + _BYTES_PER_TOKEN] for at in range(0, len(text), _BYTES_PER_TOKEN)]


def _key(endpoint: Endpoint, prompt: object, tools: Sequence[Any], seed: int | None) -> bytes:
    rendered = orjson.dumps([endpoint, prompt, tools, seed], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(rendered, digest_size=32).digest()
