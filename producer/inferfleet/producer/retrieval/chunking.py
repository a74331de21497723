"""Cuts a text into overlapping chunks, where a reader would: at paragraphs, lines, sentences, words.

Takes time in proportion to the text, whatever is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_BREAKS: Final = ("\n\n", "\n", ". ", "! ", "? ", "。", " ")
"""Where to cut, the best first. The break itself stays in front of the cut."""

_SPACE: Final = re.compile(r"\s")


def chunks_of(text: str, *, size: int, overlap: int) -> Iterator[str]:
    """Yield chunks of at most ``size`` characters, without white space around them, and none that is empty.

    Each begins up to ``overlap`` characters before the end of the one before it, at a word.
    """
    text = text.replace("\r\n", "\n")
    begin = 0
    while begin < len(text):
        end = _end(text, begin, size)
        if chunk := text[begin:end].strip():
            yield chunk
        if end == len(text):
            return
        begin = _next_begin(text, end, overlap)


def _end(text: str, begin: int, size: int) -> int:
    """Return where a chunk ends: at the best break of its second half, else where it is full."""
    full = begin + size
    if full >= len(text):
        return len(text)
    for mark in _BREAKS:
        if (found := text.rfind(mark, begin + size // 2, full)) >= 0:
            return found + len(mark)
    return full


def _next_begin(text: str, end: int, overlap: int) -> int:
    """Return where the next chunk begins: at the first word that begins in the overlap, if one does."""
    space = _SPACE.search(text, end - overlap, end)
    return end - overlap if space is None else space.end()
