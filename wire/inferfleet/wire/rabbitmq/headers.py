"""Field tables, which is what AMQP calls a message's headers (4.2.5.5), as the bytes that came.

Anything may be in the headers of another client's message: values that no client can read, names that are no
text. So nothing is read before somebody asks for it, and what was read can be written again byte for byte.
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
"""How long the values of a type are, in bytes."""

_LONG: Final = frozenset(b"SxAF")
"""Types of values that begin with their length."""

_LENGTH: Final = struct.Struct(">I")

_MAX_DEPTH: Final = 32
"""Tables and arrays in each other beyond this are not read, and not written again."""

_MAX_SECONDS: Final = 253_402_300_799
"""The last second of the year 9999. Clients have no later one."""

_UNREADABLE: Final = (ValueError, LookupError, struct.error)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a table. ``spelling`` is its name, its type and its value, as they came."""

    name: bytes
    spelling: bytes
    sound: bool
    """Whether every client can read it."""

    @property
    def value(self) -> Any:
        """What it holds.

        Raises:
            ValueError: It is not sound.

        """
        if not self.sound:
            raise ValueError("a header that cannot be read")
        return decode.embedded_value(self.spelling[1 + len(self.name) :])[1]


class FieldTable(Mapping[str, Any]):
    """The headers of a message. As a mapping it has those that can be read."""

    def __init__(self, spelling: bytes) -> None:
        self._spelling = spelling

    def __getitem__(self, name: str) -> Any:
        return self._readable[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._readable)

    def __len__(self) -> int:
        return len(self._readable)

    def entries(self) -> Iterator[Entry]:
        """All entries up to one whose end nobody can tell, which is the last, and not sound."""
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
    """Cut a table out of a content header: where it ends, and the table.

    Raises:
        ValueError: It ends behind the header.

    """
    start = position + _LENGTH.size
    end = start + int.from_bytes(payload[position:start], "big")
    if end > len(payload):
        raise ValueError("a table that is longer than what it is in")
    return end, FieldTable(payload[start:end])


def spelled(entries: bytes) -> bytes:
    """Spell a table, given the spelling of its entries."""
    return _LENGTH.pack(len(entries)) + entries


def _entry(data: bytes, position: int, end: int) -> tuple[bytes, int, int, int]:
    """Split an entry of a table: its name, the type, and where its value begins and ends."""
    begin = position + 1 + data[position]
    kind = data[begin]
    return data[position + 1 : begin], kind, begin + 1, _end(data, kind, begin + 1, end)


def _end(data: bytes, kind: int, start: int, end: int) -> int:
    """Where a value ends.

    Raises:
        ValueError, KeyError, struct.error: Nobody can tell.

    """
    stop = start + (4 + _LENGTH.unpack_from(data, start)[0] if kind in _LONG else _SIZES[kind])
    if stop > end:
        raise ValueError("a value that is longer than what it is in")
    return stop


def _is_sound(data: bytes, kind: int, start: int, end: int, depth: int) -> bool:
    """Whether clients can read a value, which none of them can do by halves."""
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
