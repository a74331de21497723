"""Arrivals for a simulation, from a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.job import Priority

N = TypeVar("N", int, float)

COLUMNS = ("time_s", "priority", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One job: when it is submitted, in seconds, and how many tokens it has.

    ``max_tokens`` is the limit that its request sets for the answer; ``None`` is no limit.
    """

    time_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = int(Priority.NORMAL)
    max_tokens: int | None = None


def read_trace(path: Path, *, pool: str) -> list[Arrival]:
    """Read arrivals, ordered by time. If there is a column ``pool``, read only those of this pool.

    The first line names the columns: ``time_s,priority,prompt_tokens,output_tokens``, in any order. Times may
    start anywhere; the first arrival becomes 0. A priority is 0 to 9, 9 most urgent. The column
    ``max_tokens`` may be missing or empty.

    Raises:
        ConfigurationError: The file cannot be read, or a line is invalid; the message says which.

    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write that mark
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ConfigurationError(
                    f"{path} has no column {', '.join(missing)}; its first line should be {','.join(COLUMNS)}"
                )
            arrivals = [
                _arrival(row, where=f"{path}, line {rows.line_num}")
                for row in rows
                if not row.get("pool") or row["pool"] == pool
            ]
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not CSV: {error}") from error
    if not arrivals:
        raise ConfigurationError(f"{path} has no arrivals for the pool {pool!r}")
    first = min(arrival.time_s for arrival in arrivals)
    return sorted(
        (replace(arrival, time_s=arrival.time_s - first) for arrival in arrivals),
        key=lambda arrival: arrival.time_s,
    )


def _arrival(row: Mapping[str, str | None], *, where: str) -> Arrival:
    arrival = Arrival(
        time_s=_number(row, "time_s", float, where=where),
        prompt_tokens=_number(row, "prompt_tokens", int, where=where),
        output_tokens=_number(row, "output_tokens", int, where=where),
        priority=_number(row, "priority", int, where=where),
        max_tokens=_number(row, "max_tokens", int, where=where) if row.get("max_tokens") else None,
    )
    if not math.isfinite(arrival.time_s):
        raise ConfigurationError(f"{where}: time_s is {arrival.time_s}; it must be a time in seconds")
    if arrival.prompt_tokens < 1 or arrival.output_tokens < 1 or not 0 <= arrival.priority <= 9:
        raise ConfigurationError(f"{where}: tokens must be at least 1 and the priority 0 to 9")
    if arrival.max_tokens is not None and arrival.max_tokens < arrival.output_tokens:
        raise ConfigurationError(
            f"{where}: max_tokens is {arrival.max_tokens}, and output_tokens {arrival.output_tokens}"
        )
    return arrival


def _number(row: Mapping[str, str | None], column: str, kind: Callable[[str], N], *, where: str) -> N:
    text = row[column] or ""
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {column} is {text!r}, not a number") from error
