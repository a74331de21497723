"""Makes text from outside safe for a terminal and for a log line.

Ids, metadata, answers and errors come from other programs. Characters that a terminal would interpret (escape
sequences, carriage returns, marks that change the direction of text) are escaped.
"""

from __future__ import annotations

import re

_OBEYED = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_OBEYED}]")
_IN_LINE = re.compile(f"[{_OBEYED}\\t\\n]")


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Escape every control character as JSON does, like ``\u001b``; JSON stays JSON.

    Line ends and tabs stay, unless ``one_line`` is set.
    """
    return (_IN_LINE if one_line else _IN_TEXT).sub(lambda found: f"\\u{ord(found[0]):04x}", text)
