"""Reads the conditions of ``--where``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inferfleet.cli.options import parse_duration
from inferfleet.producer.job_listing import JobFilter
from inferfleet.producer.job_making import read_priority
from inferfleet.schemas.job import JobState

METADATA = "metadata."

WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Condition: pool, state (queued or running), priority, session, older-than (90s, 10m, 2h, 3d), "
        "or metadata.KEY, which reads the whole request of each job. Repeatable: all have to hold.",
    ),
]


def parse_where(conditions: list[str] | None) -> JobFilter:
    """Read conditions like ``pool=chat`` and ``older-than=10m``.

    Raises:
        typer.BadParameter: A condition cannot be read, or is given twice.

    """
    given: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for condition in conditions or ():
        name, _, value = condition.partition("=")
        if not value.strip():
            raise typer.BadParameter(f"{condition!r} is not of the form NAME=VALUE")
        field, read = _read(name, value)
        into: dict[str, Any] = metadata if name.startswith(METADATA) else given
        if field in into:
            raise typer.BadParameter(f"{name} is given twice")
        into[field] = read
    return JobFilter(**given, metadata=metadata)


def _read(name: str, value: str) -> tuple[str, Any]:
    match name:
        case "pool":
            return "pool", value
        case "session":
            return "session_id", value
        case "priority":
            return "priority", read_priority(value)
        case "state":
            if value not in set(JobState):
                raise typer.BadParameter(f"{value!r} is not a state: queued or running")
            return "state", JobState(value)
        case "older-than":
            if (seconds := parse_duration(value)) is None:
                raise typer.BadParameter(f"{value!r} is not a duration like 90s, 10m, 2h or 3d")
            return "older_than_s", seconds
        case _ if name.startswith(METADATA) and name != METADATA:
            return name.removeprefix(METADATA), value
        case _:
            raise typer.BadParameter(
                f"{name!r} is not pool, state, priority, session, older-than or metadata.KEY"
            )
