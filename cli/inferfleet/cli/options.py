"""Options that several commands share, and how they are parsed."""

from __future__ import annotations

from typing import Annotated

import typer

from inferfleet.schemas.job import Priority
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


def parse_priority(text: str) -> int:
    """Read a priority: a name or a number from 0 to 9."""
    try:
        return int(Priority[text.upper()])
    except KeyError:
        pass
    if text.isdecimal() and int(text) <= 9:
        return int(text)
    names = ", ".join(f"{priority.name.lower()} ({priority})" for priority in Priority)
    raise typer.BadParameter(f"{text!r} is neither a number from 0 to 9 nor one of {names}")


def parse_metadata(pairs: list[str]) -> dict[str, str]:
    """Read ``key=value`` pairs."""
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is not of the form key=value")
        metadata[key] = value
    return metadata
