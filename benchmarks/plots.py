"""Plots of the figures, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from report import OURS, lower_is_better, medians
from rounds import Figures

SHOWN = {
    "drain, jobs/s": "drain.svg",
    "submit in bulk, jobs/s": "submit.svg",
    "round trip, 1 outstanding, p50 ms": "round-trip-1.svg",
    "round trip, 64 outstanding, p50 ms": "round-trip-64.svg",
}

INK, SHADE = "#1f5fa8", "#b9c4cf"


def bars(figures: Mapping[str, Sequence[Figures]], folder: Path) -> None:
    """Draw the figures that matter most, one plot each."""
    for figure, file in SHOWN.items():
        found = medians(figure, figures)
        if not found:
            continue
        names = list(reversed(found))
        _, axes = plt.subplots(figsize=(6.4, 0.4 * len(names) + 0.9), layout="constrained")
        drawn = axes.barh(names, [found[name] for name in names])
        for bar, name in zip(drawn, names, strict=True):
            bar.set_color(INK if name == OURS else SHADE)
        axes.bar_label(drawn, fmt=lambda value: f"{value:,.4g}", padding=3)
        axes.set_title(f"{figure} ({'less' if lower_is_better(figure) else 'more'} is better)", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
        plt.savefig(folder / file, metadata={"Date": None})
        plt.close()


def lines(
    path: Path, *, title: str, x: str, y: str, series: Mapping[str, Mapping[float, float]], log_x: bool = True
) -> None:
    """Draw one or more lines, each a mapping from x to y."""
    _, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for name, points in series.items():
        axes.plot(list(points), list(points.values()), marker="o", label=name)
    if log_x:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False)
    plt.savefig(path, metadata={"Date": None})
    plt.close()
