"""Removes a request's own words from an error message that a library or a server has made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.request_members import KNOWN_MEMBERS

_SHORTEST_REDACTED: Final = 6

_NAMING: Final = frozenset({"role", "type", "name", "id", "tool_call_id"})
"""Fields of a message that hold names, which an error may quote."""

_WORD: Final = re.compile(r"[\w.-]{1,32}")

_TEXTS: Final = frozenset(field for spec in ENDPOINTS.values() for field in spec.texts)

_WORDS_OF_ERRORS: Final = frozenset(
    {"system", "developer", "user", "assistant", "tool", "function"} | KNOWN_MEMBERS
)
"""Names of roles and fields. A message that consists of one of them is not a secret."""


def without_prompt(message: str, body: Mapping[str, Any]) -> str:
    """Remove the caller's text from a message, in case a library has quoted it.

    A single word, such as "tokens", may be in any error by chance, so it is removed only where it looks
    quoted.
    """
    said = set(_texts([body.get(field) for field in _TEXTS]))
    for text in sorted(said, key=len, reverse=True):
        if len(text) < _SHORTEST_REDACTED:
            continue
        if not _WORD.fullmatch(text):
            message = message.replace(text, "[…]")
        elif text not in _WORDS_OF_ERRORS and not text.isdigit():
            message = re.sub(rf"(?<=['\"`=:(\[{{])( ?){re.escape(text)}(?!\w)", r"\1[…]", message)
    return message


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case [*parts]:
            for each in parts:
                yield from _texts(each)
        case dict():
            for field, each in cast("dict[str, Any]", value).items():
                if not (field in _NAMING and isinstance(each, str) and _WORD.fullmatch(each)):
                    yield from _texts(each)
        case _:
            return
