"""What a response or a session says, in parts that a page can show. Pure."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson

from inferfleet.schemas.said import shown_text

MOST_CHARS: Final = 200_000
"""How much of a text a page shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one choice of an answer, or one message, says. ``calls`` are tool calls as text.

    The only choice of an answer has no ``title``.
    """

    title: str
    text: str
    reasoning: str = ""
    calls: tuple[str, ...] = ()


def answer_parts(response: Mapping[str, Any]) -> list[Part]:
    """Return the choices of an answer; for an answer without choices, its JSON."""
    choices = cast("Sequence[Mapping[str, Any]]", response.get("choices") or ())
    if not choices:
        return [Part(title=str(response.get("object", "answer")), text=as_json(response))]
    many = len(choices) > 1
    return [
        _part(f"Choice {number}" if many else "", choice.get("message") or {"content": choice.get("text")})
        for number, choice in enumerate(choices, start=1)
    ]


def message_parts(messages: Sequence[Mapping[str, Any]]) -> Generator[Part]:
    """Yield the messages of a conversation."""
    for message in messages:
        name = message.get("name")
        yield _part(f"{message.get('role')}{f' ({name})' if name else ''}", message)


def as_json(value: Any) -> str:
    """Write a value as JSON for a person."""
    return cut(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def cut(text: str) -> str:
    """Leave out what is too much for a page."""
    left = len(text) - MOST_CHARS
    return text if left <= 0 else f"{text[:MOST_CHARS]}\n… {left:,} more characters are left out"


def _part(title: str, message: Mapping[str, Any]) -> Part:
    calls = cast("Sequence[Mapping[str, Any]]", message.get("tool_calls") or ())
    return Part(
        title=title,
        text=cut(shown_text(message.get("content")) or str(message.get("refusal") or "")),
        reasoning=cut(str(message.get("reasoning") or message.get("reasoning_content") or "")),
        calls=tuple(
            cut(f"{call.get('function', {}).get('name')}({call.get('function', {}).get('arguments')})")
            for call in calls
        ),
    )
