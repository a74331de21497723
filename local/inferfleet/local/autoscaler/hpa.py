"""The HPA's part: how many replicas the metrics ask for, between one and the maximum.

Follows pkg/controller/podautoscaler (horizontal.go, replica_calculator.go) of Kubernetes 1.33, for the HPA
that KEDA makes: external metrics, and never fewer than one replica.
"""

from __future__ import annotations

import math
from fractions import Fraction

from inferfleet.local.autoscaler.behavior import Pace
from inferfleet.local.autoscaler.decision import Decision, Readings
from inferfleet.local.autoscaler.scaled_object import ScaledObject
from inferfleet.local.autoscaler.triggers import MetricType, Trigger

SYNC_S = 15.0
"""``--horizontal-pod-autoscaler-sync-period``."""

TOLERANCE = 0.1
"""``--horizontal-pod-autoscaler-tolerance``."""


class Hpa:
    """Decides every ``SYNC_S``. Times are seconds of any clock."""

    def __init__(self, scaled_object: ScaledObject) -> None:
        self._object = scaled_object
        self._min = max(1, scaled_object.min_replicas)
        self._max = scaled_object.max_replicas
        self._pace = Pace(scaled_object.behavior, min_replicas=self._min, max_replicas=self._max)

    def decide(self, *, now: float, readings: Readings, replicas: int) -> Decision:
        """Decide with one reading for each trigger, any of which may have failed."""
        self._pace.begin(now=now, replicas=replicas)
        if self._object.paused:
            return Decision(replicas, "paused")
        if replicas == 0:
            return Decision(0, "at zero the HPA is off")
        decision = self._decide(now, readings, replicas)
        self._pace.changed(now=now, before=replicas, after=decision.replicas)
        return decision

    def _decide(self, now: float, readings: Readings, replicas: int) -> Decision:
        if replicas > self._max:
            return Decision(self._max, "above maxReplicaCount")
        if replicas < self._min:
            return Decision(self._min, "below minReplicaCount")
        proposals = [
            (self._proposal(trigger, reading.value, replicas), trigger)
            for trigger, reading in zip(self._object.triggers, readings, strict=True)
            if reading.value is not None
        ]
        if not proposals:
            return Decision(replicas, "no trigger can be read")
        wanted, trigger = max(proposals, key=lambda proposal: proposal[0])
        if len(proposals) < len(self._object.triggers) and wanted < replicas:
            return Decision(replicas, "a trigger fails, so nothing is taken away")
        allowed, held = self._pace.allow(wanted, now=now, replicas=replicas)
        why = f"{trigger.name} asks for {wanted}"
        return Decision(allowed, f"{why}; held back by {held}" if held else why)

    def _proposal(self, trigger: Trigger, value: float, replicas: int) -> int:
        # The HPA counts in thousandths, so that 3.3 is not a little more than 33 tenths.
        usage, target = round(value * 1000), round(trigger.target * 1000)
        behavior = self._object.behavior
        up = behavior.scale_up.tolerance if behavior else None
        down = behavior.scale_down.tolerance if behavior else None
        per_replica = trigger.metric_type is MetricType.AVERAGE_VALUE
        ratio = usage / (target * replicas if per_replica else target)
        if 1 - (TOLERANCE if down is None else down) <= ratio <= 1 + (TOLERANCE if up is None else up):
            return replicas
        return math.ceil(Fraction(usage, target) * (1 if per_replica else replicas))
