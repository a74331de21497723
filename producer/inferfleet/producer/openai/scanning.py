"""Looks over a JSON text before it is parsed: parsers build whatever is there, and keep the process busy.

It takes longer than parsing, but lets other threads go on.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Final

from inferfleet.producer.openai.refusals import bad_request
from inferfleet.schemas.json_values import MAX_LEVELS

_LEVELS: Final = MAX_LEVELS + 2
"""An array of jobs and a job are around a body."""

# A string without an end goes to the end of the text, else each quote in it would be tried.
_TOKEN: Final = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"?|(?P<opens>[\[{])|(?P<closes>[\]}])|(?P<number>(?<![\d.])-?\d{19,}+(?![.eE]))',
    re.DOTALL,
)


def scan(content: bytes) -> Generator[tuple[int, int]]:
    """Look over a whole text. Yield where each object and array in the outermost one begins and ends.

    Raises:
        RefusedError: The text is nested too deeply, or has a number that a parser would change.

    """
    level = begin = 0
    for token in _TOKEN.finditer(content):
        match token.lastgroup:
            case "opens":
                level += 1
                if level == 2:
                    begin = token.start()
                elif level > _LEVELS:
                    raise bad_request(
                        "the body is nested too deeply: at most "
                        f"{MAX_LEVELS} levels of objects and lists are read"
                    )
            case "closes":
                if level == 2:
                    yield begin, token.end()
                level -= 1
            case "number" if not _fits(token[0]):
                raise bad_request(
                    f"the whole number at character {token.start()} has more than 64 bits, which engines and "
                    "other languages cannot read; send it as a string"
                )
            case _:
                pass


def _fits(number: bytes) -> bool:
    return len(number) <= 20 and -(2**63) <= int(number) < 2**64
