"""A plot of a simulation. Needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from inferfleet.local.autoscaler.outcome import SimulationResult
from inferfleet.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".png", ".svg")
BINS = 120
"""The number of intervals for which arrivals and waits are shown."""


def check_plot(path: Path) -> None:
    """Raise ``ConfigurationError`` now, rather than after a long simulation, if the plot cannot be drawn."""
    if path.suffix not in KINDS:
        raise ConfigurationError(f"--plot {path}: the name must end in {' or '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"--plot {path}: there is no such folder")
    if find_spec("matplotlib") is None:
        raise ConfigurationError("--plot needs matplotlib: pip install 'inferfleet[plot]'")


def draw(outcome: SimulationResult, path: Path, *, title: str) -> None:
    """Draw arrivals, queue, replicas, waits and GPU hours over time, as PNG or SVG by the name's ending."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 11), layout="constrained")
    figure.suptitle(title)
    axes: list[Axes] = list(figure.subplots(5, 1, sharex=True))
    arrivals, queue, replicas, waits, hours = axes
    _arrivals(arrivals, outcome)
    minutes = [sample.time_s / 60 for sample in outcome.samples]
    queue.fill_between(minutes, [sample.ready for sample in outcome.samples], label="ready", alpha=0.6)
    queue.plot(minutes, [sample.unacked for sample in outcome.samples], label="held by workers", color="C1")
    _finish(queue, "jobs")
    replicas.step(minutes, [sample.replicas for sample in outcome.samples], where="post", label="wanted")
    replicas.step(minutes, [sample.ready_replicas for sample in outcome.samples], where="post", label="ready")
    _finish(replicas, "replicas")
    _waits(waits, outcome)
    used, spent = 0.0, [0.0]
    for before, after in zip(outcome.samples, outcome.samples[1:], strict=False):
        used += before.gpus * (after.time_s - before.time_s) / 3600
        spent.append(used)
    hours.plot(minutes, spent, label=f"{outcome.gpu_hours:.2f} in all")
    _finish(hours, "GPU hours")
    hours.set_xlabel("minutes")
    figure.savefig(path)


def _arrivals(axes: Axes, outcome: SimulationResult) -> None:
    width = max(outcome.duration_s, 1.0) / BINS
    counts = Counter(int(arrival.time_s / width) for arrival in outcome.arrivals)
    axes.bar(
        [number * width / 60 for number in range(BINS)],
        [counts[number] / width for number in range(BINS)],
        width=width / 60,
        align="edge",
        label="arrivals",
    )
    _finish(axes, "jobs / s")


def _waits(axes: Axes, outcome: SimulationResult) -> None:
    started = [job for job in outcome.finished if job.started_at is not None]
    axes.plot(
        [job.arrival.time_s / 60 for job in started],
        [(job.started_at or 0.0) - job.arrival.time_s for job in started],
        ".",
        markersize=2,
        label="by time of arrival",
    )
    _finish(axes, "wait, s")


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="upper right")
