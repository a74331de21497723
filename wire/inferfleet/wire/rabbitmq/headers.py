"""A message's headers, which AMQP calls a field table (4.2.5.5), as the original bytes.

The headers of another client's message may contain anything: values that no client can read, names that are
not text. So this module parses nothing before it is needed, and can write all of it again byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from pamqp import decode

_SIZES: Final[Mapping[int, int]] = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"su", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"lLdT", 8),
    ord("D"): 5,
    ord("V"): 0,
}
"""The length of a value by its type, in bytes."""

_LONG: Final = frozenset(b"SxAF")
"""Types of values that begin with their length."""

_LENGTH: Final = struct.Struct(">I")

_MAX_DEPTH: Final = 32
"""Tables and arrays that are nested deeper are neither read nor written again."""

_MAX_SECONDS: Final = 253_402_300_799
"""The last second of the year 9999: clients cannot represent a later one."""

_UNREADABLE: Final = (ValueError, LookupError, struct.error)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a table. ``spelling`` is its name, its type and its value, as the original bytes."""

    name: bytes
    spelling: bytes
    sound: bool
    """Whether every client can read it."""

    @property
    def value(self) -> Any:
        """The value of the entry.

        Raises:
            ValueError: The entry is not sound.

        """
        if not self.sound:
            raise ValueError("a header that cannot be read")
        return decode.embedded_value(self.spelling[1 + len(self.name) :])[1]


class FieldTable(Mapping[str, Any]):
    """The headers of a message. As a mapping it has the headers that can be read."""

    def __init__(self, spelling: bytes) -> None:
        self._spelling = spelling

    def __getitem__(self, name: str) -> Any:
        return self._readable[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._readable)

    def __len__(self) -> int:
        return len(self._readable)

    def entries(self) -> Iterator[Entry]:
        """All entries up to the first one whose end is unknown, which is not sound."""
        data, position = self._spelling, 0
        while position < len(data):
            start = position
            try:
                name, kind, value, position = _entry(data, position, len(data))
            except _UNREADABLE:
                yield Entry(b"", data[start:], sound=False)
                return
            sound = _is_text(name) and _is_sound(data, kind, value, position, 0)
            yield Entry(name, data[start:position], sound)

    @cached_property
    def _readable(self) -> dict[str, Entry]:
        return {entry.name.decode(): entry for entry in self.entries() if entry.sound}


def field_table(payload: bytes, position: int) -> tuple[int, FieldTable]:
    """Cut a table out of a content header. Return where it ends, and the table.

    Raises:
        ValueError: The table ends behind the header.

    """
    start = position + _LENGTH.size
    end = start + int.from_bytes(payload[position:start], "big")
    if end > len(payload):
        raise ValueError("a table that is longer than what it is in")
    return end, FieldTable(payload[start:end])


def spelled(entries: bytes) -> bytes:
    """Encode a table from its encoded entries."""
    return _LENGTH.pack(len(entries)) + entries


def _entry(data: bytes, position: int, end: int) -> tuple[bytes, int, int, int]:
    """Split an entry of a table. Return its name, its type, and where its value begins and ends."""
    begin = position + 1 + data[position]
    kind = data[begin]
    return data[position + 1 : begin], kind, begin + 1, _end(data, kind, begin + 1, end)


def _end(data: bytes, kind: int, start: int, end: int) -> int:
    """Return where a value ends.

    Raises:
        ValueError, KeyError, struct.error: The end is unknown.

    """
    stop = start + (4 + _LENGTH.unpack_from(data, start)[0] if kind in _LONG else _SIZES[kind])
    if stop > end:
        raise ValueError("a value that is longer than what it is in")
    return stop


def _is_sound(data: bytes, kind: int, start: int, end: int, depth: int) -> bool:
    """Return whether clients can read the whole value."""
    if kind == ord("T"):
        return int.from_bytes(data[start:end], "big") <= _MAX_SECONDS
    if kind not in b"AF":
        return True
    if depth == _MAX_DEPTH:
        return False
    position = start + _LENGTH.size
    with suppress(*_UNREADABLE):
        while position < end:
            name = b""
            if kind == ord("F"):
                name, inner, value, position = _entry(data, position, end)
            else:
                inner, value = data[position], position + 1
                position = _end(data, inner, value, end)
            if not (_is_text(name) and _is_sound(data, inner, value, position, depth + 1)):
                return False
        return True
    return False


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
