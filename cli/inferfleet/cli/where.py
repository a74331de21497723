"""Reads the conditions of ``--where``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inferfleet.cli.options import parse_duration
from inferfleet.producer.dead_letters import LetterFilter
from inferfleet.producer.job_listing import JobFilter
from inferfleet.producer.job_making import read_priority
from inferfleet.schemas.job import JobState

METADATA = "metadata."

FIELDS = {"session": "session_id", "older-than": "older_than_s"}
"""The fields of the filters that have other names."""

WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Condition: pool, state (queued or running), priority, session, tenant, older-than (90s, 10m, "
        "2h, 3d), or metadata.KEY, which reads the whole request of each job. Repeatable: all have to hold.",
    ),
]


LettersWhereOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Condition: pool, which is needed; message, a part of the failure's (such as out_of_memory); "
        "priority, session, or metadata.KEY. Repeatable: all have to hold.",
    ),
]


def parse_where(conditions: list[str] | None) -> JobFilter:
    """Read conditions on unfinished jobs, like ``pool=chat`` and ``older-than=10m``.

    Raises:
        typer.BadParameter: A condition cannot be read, or is given twice.

    """
    given, metadata = _given(conditions, ("pool", "state", "priority", "session", "tenant", "older-than"))
    return JobFilter(**given, metadata=metadata)


def parse_letters_where(conditions: list[str] | None) -> tuple[str, LetterFilter]:
    """Read conditions on dead letters: their pool, and at least one other.

    Raises:
        typer.BadParameter: A condition is missing, cannot be read, or is given twice.

    """
    given, metadata = _given(conditions, ("pool", "message", "priority", "session"))
    pool, where = given.pop("pool", None), LetterFilter(**given, metadata=metadata)
    if pool is None or where == LetterFilter():
        raise typer.BadParameter(
            "give the pool and another condition with --where; `dead replay --all` takes all of a pool"
        )
    return pool, where


def _given(conditions: list[str] | None, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of the conditions by the fields of the filters, and those on metadata."""
    given: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for condition in conditions or ():
        name, _, value = condition.partition("=")
        if not value.strip():
            raise typer.BadParameter(f"{condition!r} is not of the form NAME=VALUE")
        key = name.removeprefix(METADATA)
        if name != key and key:
            field, read, into = key, value, metadata
        elif name in names:
            field, read, into = FIELDS.get(name, name), _read(name, value), given
        else:
            raise typer.BadParameter(f"{name!r} is not {', '.join(names)} or {METADATA}KEY")
        if field in into:
            raise typer.BadParameter(f"{name} is given twice")
        into[field] = read
    return given, metadata


def _read(name: str, value: str) -> Any:
    match name:
        case "priority":
            return read_priority(value)
        case "state":
            if value not in set(JobState):
                raise typer.BadParameter(f"{value!r} is not a state: queued or running")
            return JobState(value)
        case "older-than":
            if (seconds := parse_duration(value)) is None:
                raise typer.BadParameter(f"{value!r} is not a duration like 90s, 10m, 2h or 3d")
            return seconds
        case _:
            return value
