"""Redis streams: lines and their ids."""

from __future__ import annotations

import bisect
from typing import Final

from inferfleet.local.simulation.answers import Answer

LineId = tuple[int, int]
"""A time in milliseconds, and a number that distinguishes the lines of one millisecond."""

LAST: Final[LineId] = (1 << 63, 1 << 63)
"""Behind every line."""


def parse_id(text: bytes, sequence: int) -> LineId:
    """Parse an id; an id without a sequence number gets this one."""
    time, _, rest = text.partition(b"-")
    return int(time), int(rest) if rest else sequence


def first_id(text: bytes) -> LineId:
    """Parse the lower end of a range."""
    if text == b"-":
        return (0, 0)
    if text[:1] == b"(":
        time, sequence = parse_id(text[1:], 0)
        return time, sequence + 1
    return parse_id(text, 0)


def last_id(text: bytes) -> LineId:
    """Parse the upper end of a range."""
    return LAST if text == b"+" else parse_id(text, 1 << 63)


class Stream:
    """Lines in the order of their ids."""

    def __init__(self) -> None:
        self.lines: list[tuple[LineId, list[bytes]]] = []
        self.last: LineId = (0, 0)

    def copy(self) -> Stream:
        """Return a copy that does not change with this stream."""
        new = Stream()
        new.lines, new.last = self.lines.copy(), self.last
        return new

    def between(self, low: LineId, high: LineId) -> list[Answer]:
        """Return the lines with these ids and all in between."""
        begin = bisect.bisect_left(self.lines, (low,))
        end = bisect.bisect_right(self.lines, high, key=lambda line: line[0])
        return [[b"%d-%d" % line_id, fields] for line_id, fields in self.lines[begin:end]]
