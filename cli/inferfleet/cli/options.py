"""Options that several commands share, and how they are parsed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from inferfleet.schemas.errors import InferfleetError
from inferfleet.schemas.job import Priority
from inferfleet.schemas.settings import ProducerSettings, read_settings

COMPLETION_S: Final = 1.0
"""How long a user who presses Tab waits at most for Redis."""

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


def refuse_given(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that have no effect here, if the command line has them. ``why`` says what to do."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(why, param_hint=f"'{parameter.opts[0]}'")


def live_pools(incomplete: str) -> list[str]:
    """Complete the name of a pool that has a worker; with nothing if Redis does not answer at once."""
    # Imported late: a command that completes nothing does not need it.
    from inferfleet.producer.fleet import Fleet

    async def read() -> set[str]:
        async with asyncio.timeout(COMPLETION_S), Fleet.connect(producer_settings()) as fleet:
            return {heartbeat.pool for heartbeat in await fleet.workers()}

    try:
        return sorted(pool for pool in asyncio.run(read()) if pool.startswith(incomplete))
    except (InferfleetError, OSError):
        return []


def priorities(incomplete: str) -> list[str]:
    """Complete the name of a priority."""
    return [each.name.lower() for each in Priority if each.name.lower().startswith(incomplete)]


JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Job id, as printed by `submit`.", callback=not_empty)
]


PoolOption = Annotated[
    str, typer.Option("--pool", help="Pool of workers to run on.", autocompletion=live_pools)
]
PriorityOption = Annotated[
    str,
    typer.Option(
        "--priority", help="0 to 9, 9 most urgent; or batch, normal, high, urgent.", autocompletion=priorities
    ),
]


def producer_settings() -> ProducerSettings:
    """Read the client's settings from the environment."""
    return read_settings(ProducerSettings)


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
"""The units of a duration."""


def parse_duration(text: str) -> float | None:
    """Read a duration like ``10m`` in seconds; ``None`` if it is not one."""
    duration = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text, re.ASCII)
    return float(duration[1]) * _SECONDS[duration[2]] if duration else None


def parse_moment(text: str, *, option: str = "--expires") -> datetime:
    """Read a moment: a duration from now, like ``10m``, or an ISO 8601 time with its zone."""
    try:
        if (seconds := parse_duration(text)) is not None:
            return datetime.now(UTC) + timedelta(seconds=seconds)  # noqa: TID251 - from the user's now
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise typer.BadParameter(
            f"{text!r} is neither a duration like 90s, 10m, 2h or 3d nor a time with its zone, like "
            "2027-01-31T12:00:00Z",
            param_hint=f"'{option}'",
        )
    return moment


def parse_metadata(pairs: list[str]) -> dict[str, str]:
    """Read ``key=value`` pairs, each with another key."""
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is not of the form key=value", param_hint="'--metadata'")
        if key in metadata:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint="'--metadata'")
        metadata[key] = value
    return metadata
