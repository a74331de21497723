"""Numbers and times as words for a page. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from inferfleet.schemas.job import Priority

_UNITS: Final = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def lasting(seconds: float | None) -> str:
    """Say how long something takes, with two units at most: ``2 h 5 min``."""
    if seconds is None:
        return "–"
    # What is rounded up to the next unit has that one.
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, small_unit in _UNITS:
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"


def count(number: float | None) -> str:
    """Write a number with separators; one that is unknown as a dash."""
    if number is None:
        return "–"
    return f"{number:,.0f}" if number == int(number) or abs(round(number, 1)) >= 10 else f"{number:,.1f}"


def share(part: float | None) -> str:
    """Write a share from 0 to 1 in percent."""
    return "–" if part is None else f"{part:.1%}"


def percent(number: float) -> str:
    """Write a number from 0 to 100 with its sign."""
    return f"{number:g} %"


def size(number: int) -> str:
    """Write a number of bytes."""
    value = float(number)
    for unit in ("bytes", "KiB", "MiB"):
        if round(value, 1) < 1024:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def moment(at: datetime | None) -> str:
    """Write a time."""
    return "–" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def priority_name(level: int) -> str:
    """Name a priority; one that has no name is empty."""
    return next((each.name.lower() for each in Priority if each == level), "")


def short(text: str, most: int = 80) -> str:
    """Cut a long text."""
    return text if len(text) <= most else text[: most - 1] + "…"
