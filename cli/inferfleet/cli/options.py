"""Options that several commands share, and how they are parsed."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from inferfleet.schemas.settings import ProducerSettings, read_settings

JsonFlag = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]


def not_empty(value: str | None) -> str | None:
    """Refuse an empty value: most likely the caller's shell variable was not set."""
    if value is not None and not value.strip():
        raise typer.BadParameter("is empty")
    return value


def none_empty(values: list[str] | None) -> list[str] | None:
    """Refuse a list with an empty value."""
    for value in values or ():
        not_empty(value)
    return values


JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Job id, as printed by `submit`.", callback=not_empty)
]


def producer_settings() -> ProducerSettings:
    """Read the client's settings from the environment."""
    return read_settings(ProducerSettings)


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
"""The units of a duration."""


def parse_moment(text: str) -> datetime:
    """Read a moment: a duration from now, like ``10m``, or an ISO 8601 time with its zone."""
    try:
        if duration := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text, re.ASCII):
            seconds = float(duration[1]) * _SECONDS[duration[2]]
            return datetime.now(UTC) + timedelta(seconds=seconds)  # noqa: TID251 - from the user's now
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise typer.BadParameter(
            f"{text!r} is neither a duration like 90s, 10m, 2h or 3d nor a time with its zone, like "
            "2027-01-31T12:00:00Z"
        )
    return moment


def parse_metadata(pairs: list[str]) -> dict[str, str]:
    """Read ``key=value`` pairs."""
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is not of the form key=value")
        metadata[key] = value
    return metadata
