"""What the metadata of a document is in a vector set, and conditions on it as a ``FILTER``.

Redis' language of filters has no escapes: a string that ends in a backslash, or has a quote, cannot be
written in it. So keys and strings are digests on both sides, and whatever a caller passes, a filter has only
names, numbers and digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

import orjson

from inferfleet.schemas.conditions import Bounds, Condition

_LONGEST_NUMBER: Final = 250
"""A longer one is a syntax error for Redis. Digits this far behind the point do not matter."""

_COMPARISONS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def attributes(metadata: Mapping[str, Any]) -> bytes:
    """Return the attributes of a document's chunks: numbers, and lists of digests for all else."""
    return orjson.dumps(dict(_stored(key, value) for key, value in metadata.items()))


def expression(where: Mapping[str, Condition]) -> str:
    """Return the filter that is true where all conditions are."""
    return " and ".join(f"({_condition(key, wanted)})" for key, wanted in where.items())


def _stored(key: str, value: Any) -> tuple[str, float | list[str]]:
    match value:
        case bool() | str():
            return _words(key), [_digest(value)]
        case int() | float():
            return _number_of(key), value
        case _:
            return _words(key), [_digest(each) for each in value]


def _condition(key: str, wanted: Condition) -> str:
    match wanted:
        case Bounds():
            return " and ".join(
                f".{_number_of(key)} {_COMPARISONS[bound]} {_number(value)}"
                for bound, value in wanted.model_dump(exclude_none=True).items()
            )
        case list():
            return " or ".join(_equal(key, value) for value in wanted)
        case _:
            return _equal(key, wanted)


def _equal(key: str, value: Any) -> str:
    if isinstance(value, bool | str):
        return f'"{_digest(value)}" in .{_words(key)}'
    return f".{_number_of(key)} == {_number(value)}"


def _number(value: float) -> str:
    """Write a number without an exponent, whose sign Redis takes for an operator."""
    return format(Decimal(repr(value)), "f")[:_LONGEST_NUMBER]


def _words(key: str) -> str:
    return f"w{_hash(key)}"


def _number_of(key: str) -> str:
    """Return another name than for words: Redis finds that a list equals 0."""
    return f"n{_hash(key)}"


def _digest(value: bool | str) -> str:
    """Return what stands for a string or a boolean, which no other value has."""
    return f"b{value:d}" if isinstance(value, bool) else f"s{_hash(value)}"


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=12).hexdigest()
