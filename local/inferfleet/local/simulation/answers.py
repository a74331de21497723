"""Redis' replies, and their encoding on the wire (RESP 3)."""

from __future__ import annotations

from typing import Any, Final, cast

Answer = Any
"""``None``, ``int``, ``bytes``, ``Status``, ``RedisError``, or a list or a dict of these."""


class RedisError(Exception):
    """An error as a reply."""


class Status(str):
    """A status reply, like ``OK``."""

    __slots__ = ()


OK: Final = Status("OK")


def encode(answer: Answer, parts: list[bytes]) -> None:
    """Append a reply, encoded in RESP 3."""
    if type(answer) is bytes:
        parts += (b"$%d\r\n" % len(answer), answer, b"\r\n")
        return
    match answer:
        case None:
            parts.append(b"_\r\n")
        case bool() | int():
            parts.append(b":%d\r\n" % answer)
        case Status():
            parts.append(b"+%s\r\n" % answer.encode())
        case RedisError():
            parts.append(b"-%s\r\n" % str(answer).replace("\n", " ").encode())
        case dict():
            pairs = cast("dict[bytes, Answer]", answer)
            parts.append(b"%%%d\r\n" % len(pairs))
            for key, value in pairs.items():
                encode(key, parts)
                encode(value, parts)
        case _:
            items = cast("list[Answer]", answer)
            parts.append(b"*%d\r\n" % len(items))
            for item in items:
                encode(item, parts)
