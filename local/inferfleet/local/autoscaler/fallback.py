"""What KEDA tells the HPA about a failing trigger: an error, and after too many failures a substitute value.

Follows pkg/fallback/fallback.go of KEDA 2.20. KEDA counts failures when it polls and when the HPA queries
it, and a trigger that falls back is active, so a fallback starts a fleet (keda#7239, since 2.19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from inferfleet.local.autoscaler.decision import Reading, Readings
from inferfleet.local.autoscaler.scaled_object import Fallback, ScaledObject
from inferfleet.local.autoscaler.triggers import MetricType


class FailureCounts:
    """Counts each trigger's failures in a row."""

    def __init__(self, scaled_object: ScaledObject) -> None:
        self._object = scaled_object
        self._failures = [0] * len(scaled_object.triggers)

    def answer(self, readings: Readings, *, replicas: int) -> Sequence[Reading]:
        """Replace a failed reading once its trigger has failed more than ``failureThreshold`` times."""
        return [self._answer(number, reading, replicas) for number, reading in enumerate(readings)]

    def _answer(self, number: int, reading: Reading, replicas: int) -> Reading:
        if reading.value is not None:
            self._failures[number] = 0
            return reading
        self._failures[number] += 1
        fallback, trigger = self._object.fallback, self._object.triggers[number]
        if fallback is None or self._failures[number] <= fallback.failure_threshold:
            return reading
        number_wanted = wanted(fallback, replicas)
        match trigger.metric_type:
            case MetricType.AVERAGE_VALUE:
                return Reading(trigger.target * number_wanted, fallback=True)
            case MetricType.VALUE if replicas == 0:
                return reading
            case MetricType.VALUE:
                # The HPA multiplies this by the replicas and rounds up, so it must not be above: round it
                # down to thousandths.
                return Reading(
                    math.floor(trigger.target * number_wanted / replicas * 1000) / 1000, fallback=True
                )


def wanted(fallback: Fallback, replicas: int) -> int:
    """Return how many replicas a fallback wants if there are ``replicas`` now."""
    match fallback.behavior:
        case "static":
            return fallback.replicas
        case "currentReplicas":
            return replicas
        case "currentReplicasIfHigher":
            return max(replicas, fallback.replicas)
        case "currentReplicasIfLower":
            return min(replicas, fallback.replicas)
