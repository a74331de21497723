"""Checks that a reader will read a caller's JSON value as it was meant.

Pydantic's JSON parser reads a job, a session's state and an exported session, and it has limits of its own.
The client refuses a value that this parser would not read, before it records anything.
"""

from __future__ import annotations

import marshal
import math
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, cast
from uuid import UUID

import orjson
from pydantic_core import from_json

from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.problems import MAX_QUOTED_CHARS, printable

MAX_LEVELS: Final = 198
"""How deep a value may be nested. The parser reads 200 levels, two of which may be around the value: a
body is a member of its job, and a message is one level deeper in an exported session than in a job."""

STRICTLY_JSON: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

_LONGEST_PLACE = 3 * MAX_QUOTED_CHARS

_FIRST_STEP = re.compile(r"\[\d+\]|\.[^.\[]*")


def plain_json(value: Any, place: str) -> tuple[Any, int]:
    """Return the value as a reader will get it, and its length as JSON in bytes.

    Returns the value itself where possible, because many jobs may share it. A tuple becomes a list, a UUID
    its text, and a member of an enumeration its value. Takes a microsecond or two for a short chat.

    Raises:
        InvalidJobError: The value is not JSON, or no reader would get an equal one. The message names the
            place.

    """
    try:
        text = orjson.dumps(value, option=STRICTLY_JSON)
        # Nested as deep as a reader will find it.
        read: Any = from_json(b"[[" + text + b"]]")[0][0]
        equal: bool = read == value
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidJobError(json_problem(value, place) or f"{place}: is not JSON ({error})") from None
    # orjson writes NaN and infinity as null.
    if not equal and (problem := json_problem(value, place)):
        raise InvalidJobError(problem)
    return value if equal and _is_plain(value) else read, len(text)


def _is_plain(value: Any) -> bool:
    """Return whether all types in a value are JSON's own, without subclasses such as an ``IntEnum``."""
    try:
        # marshal accepts only such types, and is faster than checking them in Python.
        marshal.dumps(value)
    except ValueError:
        return False
    return True


def json_problem(value: Any, place: str) -> str | None:
    """Describe the first value that JSON cannot represent, or that no reader could get."""
    # Not recursive, because the value may be nested too deeply.
    unseen: list[tuple[Any, str, int]] = [(value, place, 1)]
    while unseen:
        value, path, level = unseen.pop()
        problem: str | None = None
        match value:
            case None | bool() | UUID():
                pass
            case Enum():
                unseen.append((value.value, path, level))
            case str() | int() | float():
                problem = _scalar_problem(value)
            case dict() | list() | tuple() if level > MAX_LEVELS:
                # The path of a deep value has as many steps, so name the member that contains it.
                path = place + _FIRST_STEP.findall(path[len(place) :])[0]
                problem = f"is nested too deeply: at most {MAX_LEVELS} levels of objects and lists are read"
            case dict():
                items = cast("dict[object, Any]", value)
                problem = next(filter(None, map(_key_problem, items)), None)
                below = [
                    (child, f"{path}.{str(key)[:MAX_QUOTED_CHARS]}", level + 1)
                    for key, child in items.items()
                ]
                unseen.extend(reversed(below))
            case list() | tuple():
                entries = cast("Sequence[Any]", value)
                below = [(child, f"{path}[{number}]", level + 1) for number, child in enumerate(entries)]
                unseen.extend(reversed(below))
            case _:
                problem = f"the type {type(value).__name__} has no form in JSON"
        if problem:
            return f"{_shortened(path)}: {problem}"
    return None


def _scalar_problem(value: str | int | float) -> str | None:
    match value:
        case str():
            return _text_problem(value)
        case int():
            if -(2**63) <= value < 2**64:
                return None
            return (
                "has a whole number of more than 64 bits, which engines and other languages cannot read; "
                "send it as a string"
            )
        case float():
            return None if math.isfinite(value) else f"{value} is not a JSON number"


def _text_problem(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"has half a surrogate pair ({text[error.start]!a}) at character {error.start}, which no UTF-8 "
            "text can have; decode the text with the encoding that it came in"
        )
    return None


def _key_problem(key: object) -> str | None:
    if not isinstance(key, str):
        return "has a key that is not a string"
    problem = _text_problem(key)
    return problem and f"has a key that {problem}"


def _shortened(path: str) -> str:
    path = printable(path)
    return path if len(path) <= _LONGEST_PLACE else f"{path[:_LONGEST_PLACE]}…"
