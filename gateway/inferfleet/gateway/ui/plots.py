"""The lines of a plot of the last hour, for an SVG that the server draws. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from inferfleet.schemas.fleet_history import FleetSample

WIDTH: Final = 1000
HEIGHT: Final = 100

SPAN: Final = timedelta(hours=1)

GAP: Final = timedelta(minutes=1)
"""How far apart two samples may be that a line joins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot: its lines and the areas below them, each as the points of an SVG's shape.

    ``last`` is ``None`` without a sample. ``top`` is the value at the upper edge.
    """

    title: str
    unit: str
    lines: tuple[str, ...]
    areas: tuple[str, ...]
    last: float | None
    top: float


def plots(samples: Sequence[FleetSample], now: datetime) -> list[Plot]:
    """Make the plots of the fleet."""
    return [
        _plot("Unfinished jobs", "", samples, now, lambda it: it.unfinished),
        _plot("Running jobs", "", samples, now, lambda it: it.running),
        _plot("Tokens", "/s", samples, now, lambda it: it.tokens_per_s),
    ]


def _plot(
    title: str,
    unit: str,
    samples: Sequence[FleetSample],
    now: datetime,
    value: Callable[[FleetSample], float],
) -> Plot:
    shown = [sample for sample in samples if now - SPAN <= sample.at <= now]
    top = _round_up(max((value(sample) for sample in shown), default=0))
    runs: list[list[str]] = []
    before: datetime | None = None
    for sample in shown:
        x = WIDTH * (1 - (now - sample.at) / SPAN)
        point = f"{x:.1f},{HEIGHT * (1 - value(sample) / top):.1f}"
        if before is None or sample.at - before > GAP:
            runs.append([])
        runs[-1].append(point)
        before = sample.at
    return Plot(
        title=title,
        unit=unit,
        lines=tuple(" ".join(run) for run in runs),
        areas=tuple(" ".join((f"{_x(run[0])},{HEIGHT}", *run, f"{_x(run[-1])},{HEIGHT}")) for run in runs),
        last=value(shown[-1]) if shown else None,
        top=top,
    )


def _x(point: str) -> str:
    return point.partition(",")[0]


def _round_up(most: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, … that is not smaller."""
    top = 1.0
    for factor in (2, 2.5, 2) * 20:
        if top >= most:
            break
        top *= factor
    return top
