"""Figures as Markdown tables: medians, spreads, and how ours compares."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rounds import Figures
from statistic import spread

OURS = "inferfleet"

LOWER_IS_BETTER = ("ms", "CPU", "RSS", "processes")


def tables(figures: Mapping[str, Sequence[Figures]]) -> str:
    """One table for each figure: a row for each contender, the best first."""
    names = list(dict.fromkeys(figure for rounds in figures.values() for one in rounds for figure in one))
    return "\n".join(_table(name, figures) for name in names if name != "worker processes")


def ratio_to_ours(figure: str, ours: float, other: float) -> float:
    """How many times as good ours is as the other; above 1, ours is better."""
    if not ours or not other:
        return float("nan")
    return other / ours if lower_is_better(figure) else ours / other


def lower_is_better(figure: str) -> bool:
    """Whether less of it is better."""
    return not figure.endswith("/s") and any(word in figure for word in LOWER_IS_BETTER)


def medians(figure: str, figures: Mapping[str, Sequence[Figures]]) -> dict[str, float]:
    """The median of a figure for each contender that has it, the best first."""
    found = {
        name: statistics.median(one[figure] for one in rounds)
        for name, rounds in figures.items()
        if all(figure in one for one in rounds)
    }
    order = sorted(found, key=lambda name: found[name], reverse=not lower_is_better(figure))
    return {name: found[name] for name in order}


def _table(figure: str, figures: Mapping[str, Sequence[Figures]]) -> str:
    lines = [f"### {figure}", "", "| | median | spread | ours is |", "|---|---:|---:|---:|"]
    found = medians(figure, figures)
    for name, median in found.items():
        apart = spread([one[figure] for one in figures[name]])
        ratio = ""
        if name != OURS and OURS in found:
            times = ratio_to_ours(figure, found[OURS], median)
            ratio = f"{times:.2f} ×" if times >= 1 else f"**{times:.2f} ×**"
        bold = "**" if name == OURS else ""
        lines.append(f"| {bold}{name}{bold} | {_number(median)} | ± {apart:.0%} | {ratio} |")
    return "\n".join([*lines, ""])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
