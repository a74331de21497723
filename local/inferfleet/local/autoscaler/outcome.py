"""The result of a simulation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from inferfleet.local.autoscaler.report import Change
from inferfleet.local.autoscaler.simulated_replica import SimulatedJob, SimulatedReplica
from inferfleet.local.autoscaler.trace import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The fleet at one moment. ``gpus`` counts all GPUs in use, including loading and draining ones."""

    time_s: float
    ready: int
    unacked: int
    replicas: int
    ready_replicas: int
    gpus: int


@dataclass(slots=True, kw_only=True)
class SimulationResult:
    """The history of a simulation, and its summary."""

    arrivals: Sequence[Arrival]
    finished: list[SimulatedJob] = field(default_factory=list["SimulatedJob"])
    replicas: list[SimulatedReplica] = field(default_factory=list["SimulatedReplica"])
    changes: list[Change] = field(default_factory=list["Change"])
    samples: list[Sample] = field(default_factory=list["Sample"])
    handed_over: int = 0
    duration_s: float = 0.0

    def end(self, now: float) -> None:
        """Record the end, until which the running replicas count."""
        self.duration_s = now

    @property
    def gpu_hours(self) -> float:
        """The GPU hours of all replicas, each from the decision to start it until it has ended."""
        ends = (self.duration_s if it.ended_at is None else it.ended_at for it in self.replicas)
        return sum(end - it.started_at for end, it in zip(ends, self.replicas, strict=True)) / 3600

    @property
    def waits_s(self) -> list[float]:
        """The time from submission to the engine's first step, of each finished job."""
        return [job.started_at - job.arrival.time_s for job in self.finished if job.started_at is not None]

    @property
    def latencies_s(self) -> list[float]:
        """The time from submission to the last token, of each finished job."""
        return [job.finished_at - job.arrival.time_s for job in self.finished if job.finished_at is not None]

    def summary(self) -> dict[str, Any]:
        """Summarise the result in a few numbers for JSON. Times are seconds."""
        busy_hours = self.gpu_hours
        tokens = sum(job.arrival.output_tokens for job in self.finished)
        return {
            "jobs": len(self.arrivals),
            "finished": len(self.finished),
            "unfinished": len(self.arrivals) - len(self.finished),
            "duration_s": round(self.duration_s, 1),
            "wait_s": _percentiles(self.waits_s),
            "latency_s": _percentiles(self.latencies_s),
            "queue_max": max((sample.ready for sample in self.samples), default=0),
            "replicas_max": max((change.after for change in self.changes), default=0),
            "starts": len(self.replicas),
            "handed_over": self.handed_over,
            "gpu_hours": round(busy_hours, 3),
            "output_tokens": tokens,
            "output_tokens_per_gpu_s": round(tokens / (busy_hours * 3600), 1) if busy_hours else 0.0,
        }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {
        "mean": round(statistics.fmean(values), 3),
        "p50": round(cuts[49], 3),
        "p99": round(cuts[98], 3),
        "max": round(max(values), 3),
    }
