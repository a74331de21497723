"""Do jobs wait less, for the same GPU hours, if the scaler counts work instead of jobs?

Runs the simulation of ``inferfleet autoscale --simulate`` on mixed traffic: a steady stream of short chats,
and every ten minutes a flood, of short chats and of long reports in turn. So the same number of jobs is much
or little work. Each policy has one number that buys waits with GPUs. It is swept, and the waits of the
policies are compared at equal GPU hours, by interpolation.

    python benchmarks/scaling.py                    3 seeds: about 15 minutes on one core
    python benchmarks/scaling.py --seeds 1 --json
"""

from __future__ import annotations

import argparse
import json
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import fmean
from typing import Any, Final
from unittest import mock

from inferfleet.local.autoscaler.outcome import SimulationResult
from inferfleet.local.autoscaler.profile import EngineProfile
from inferfleet.local.autoscaler.scaled_object import ScaledObject, parse_scaled_object
from inferfleet.local.autoscaler.simulate import simulate
from inferfleet.local.autoscaler.simulated_work import SimulatedWork
from inferfleet.local.autoscaler.trace import Arrival

PROFILE: Final = EngineProfile(load_s=60)
LASTS_S: Final = 3000.0
CHATS_PER_S: Final = 2.0
FLOOD_EVERY_S: Final = 600.0
FLOOD: Final = 2500
"""Jobs of a flood, all submitted within ten seconds."""

CHAT: Final = (256, 120.0)
REPORT: Final = (4096, 1500.0)
"""The limit of an answer, and its mean length. Lengths are exponentially distributed, cut at the limit."""


def trace(seed: int) -> list[Arrival]:
    """Make fifty minutes of chats with four floods, of reports and chats in turn."""
    chance = random.Random(seed)

    def job(at_s: float, kind: tuple[int, float]) -> Arrival:
        most, mean = kind
        tokens = min(most, 1 + int(chance.expovariate(1 / mean)))
        prompt = chance.randint(100, 1000)
        return Arrival(time_s=at_s, prompt_tokens=prompt, output_tokens=tokens, max_tokens=most)

    arrivals: list[Arrival] = []
    at_s = 0.0
    while (at_s := at_s + chance.expovariate(CHATS_PER_S)) < LASTS_S:
        arrivals.append(job(at_s, CHAT))
    for number in range(1, int(LASTS_S / FLOOD_EVERY_S)):
        kind = REPORT if number % 2 else CHAT
        began_s = number * FLOOD_EVERY_S
        arrivals += [job(began_s + chance.uniform(0, 10), kind) for _ in range(FLOOD)]
    return sorted(arrivals, key=lambda arrival: arrival.time_s)


def by_jobs(value: float) -> ScaledObject:
    """Scale by the number of jobs, waiting and running, as the overlay ``base``."""
    return _scaled_object(
        {
            "type": "rabbitmq",
            "metadata": {
                "host": "amqp://x",
                "protocol": "http",
                "mode": "QueueLength",
                "queueName": "inferfleet.jobs.chat",
                "value": str(value),
                "activationValue": "0",
            },
        }
    )


def by_seconds(value: float) -> ScaledObject:
    """Scale by the seconds of the backlog, as the overlay ``slo``."""
    backlog = 'max(inferfleet_queue_backlog_seconds{pool="chat"})'
    workers = 'max(inferfleet_workers{pool="chat",phase="ready"})'
    return _scaled_object(
        {
            "type": "prometheus",
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": "http://x",
                "query": f"{backlog} * {workers}",
                "threshold": str(value),
                "activationThreshold": "0",
                "ignoreNullValues": "false",
            },
        }
    )


@contextmanager
def all_jobs_alike() -> Iterator[None]:
    """Let the backlog be jobs ÷ jobs per second, as before there was an estimate of work."""
    with mock.patch.object(SimulatedWork, "heaviness", return_value=1.0):
        yield


POLICIES: Final[dict[str, tuple[Callable[[float], ScaledObject], Any, tuple[float, ...]]]] = {
    "jobs": (by_jobs, nullcontext, (80, 160, 320, 640)),
    "seconds, all jobs alike": (by_seconds, all_jobs_alike, (30, 60, 120, 240)),
    "seconds of work": (by_seconds, nullcontext, (30, 60, 120, 240)),
}


def _scaled_object(trigger: dict[str, Any]) -> ScaledObject:
    up = {"type": "Pods", "value": 4, "periodSeconds": 15}
    down = {"type": "Pods", "value": 2, "periodSeconds": 60}
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [up]},
        "scaleDown": {"stabilizationWindowSeconds": 120, "policies": [down]},
    }
    return parse_scaled_object(
        {
            "metadata": {"name": "chat"},
            "spec": {
                "scaleTargetRef": {"name": "chat"},
                "triggers": [trigger],
                "pollingInterval": 5,
                "minReplicaCount": 1,
                "maxReplicaCount": 12,
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
            },
        }
    )


def measure(seeds: int) -> dict[str, list[dict[str, float]]]:
    """Return for each policy and value the GPU hours and waits, as means over the seeds."""
    traces = [trace(seed) for seed in range(seeds)]
    found: dict[str, list[dict[str, float]]] = {}
    for name, (make, way, values) in POLICIES.items():
        with way():
            for value in values:
                outcomes = [simulate(make(value), arrivals, PROFILE) for arrivals in traces]
                found.setdefault(name, []).append({"value": value, **_means(outcomes)})
    return found


def _means(outcomes: list[SimulationResult]) -> dict[str, float]:
    waits = [outcome.summary()["wait_s"] for outcome in outcomes]
    return {
        "gpu_hours": fmean(outcome.gpu_hours for outcome in outcomes),
        "wait_mean_s": fmean(wait["mean"] for wait in waits),
        "wait_p99_s": fmean(wait["p99"] for wait in waits),
    }


def at(points: list[dict[str, float]], gpu_hours: float, what: str) -> float | None:
    """Interpolate what a policy achieves with so many GPU hours; ``None`` outside its range."""
    ordered = sorted(points, key=lambda point: point["gpu_hours"])
    place = bisect_left([point["gpu_hours"] for point in ordered], gpu_hours)
    if not 0 < place < len(ordered):
        return None
    left, right = ordered[place - 1], ordered[place]
    share = (gpu_hours - left["gpu_hours"]) / (right["gpu_hours"] - left["gpu_hours"])
    return left[what] + share * (right[what] - left[what])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="How many traces to simulate.")
    parser.add_argument("--json", action="store_true", help="Print one line of JSON.")
    asked = parser.parse_args()
    found = measure(asked.seeds)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{'scales by':<26}{'value':>7}{'GPU hours':>11}{'wait, mean':>12}{'wait, p99':>11}")
    for name, points in found.items():
        for point in points:
            print(
                f"{name:<26}{point['value']:>7g}{point['gpu_hours']:>11.2f}"
                f"{point['wait_mean_s']:>12.1f}{point['wait_p99_s']:>11.1f}"
            )
    print("\nat equal GPU hours, wait ÷ that of a scaler by seconds of work")
    best = found["seconds of work"]
    for point in best:
        hours = point["gpu_hours"]
        for name in list(found)[:2]:
            ratios = [
                f"{what} {there / point[key]:.2f}"
                for what, key in (("mean", "wait_mean_s"), ("p99", "wait_p99_s"))
                if (there := at(found[name], hours, key)) is not None
            ]
            if ratios:
                print(f"  {hours:.2f} GPU hours, {name}: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
