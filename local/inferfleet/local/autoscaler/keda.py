"""KEDA's own part: it scales from zero when there is work, and back to zero after a time without work.

Follows ``RequestScale`` of pkg/scaling/executor/scale_scaledobjects.go, KEDA 2.20. Between one replica and
the maximum it leaves the number alone, which is why the cooldown holds back only the last step (keda#6844).
"""

from __future__ import annotations

from inferfleet.local.autoscaler.decision import Decision, Readings
from inferfleet.local.autoscaler.scaled_object import ScaledObject


class Activation:
    """Decides every ``pollingInterval``. Times are seconds of any clock; ``created_at`` starts it."""

    def __init__(self, scaled_object: ScaledObject, *, created_at: float) -> None:
        self._object = scaled_object
        self._created_at = created_at
        self._last_active: float | None = None

    def decide(self, *, now: float, readings: Readings, replicas: int) -> Decision:
        """Decide with one reading for each trigger."""
        of = self._object
        if of.paused:
            if of.paused_replicas is not None:
                return Decision(of.paused_replicas, "paused at this number")
            return Decision(replicas, "paused")
        failing = any(reading.value is None for reading in readings)
        if is_active(of, readings):
            return self._active(now, replicas, failing=failing)
        # An error is not inactivity: without this a broker's restart would scale a busy fleet to zero.
        if failing and of.fallback is None:
            return Decision(replicas, "a trigger fails and there is no fallback: nothing is changed")
        if failing and of.fallback is not None and of.fallback.replicas:
            return Decision(replicas, "a trigger fails: left to the fallback")
        return self._inactive(now, replicas)

    def _active(self, now: float, replicas: int, *, failing: bool) -> Decision:
        of = self._object
        if replicas == 0 or (of.idle_replicas is not None and replicas < of.min_replicas):
            self._last_active = now
            return Decision(max(1, of.min_replicas), "active")
        if not failing:
            self._last_active = now
        return Decision(replicas, "active: the number is the HPA's")

    def _inactive(self, now: float, replicas: int) -> Decision:
        of = self._object
        above_idle = of.idle_replicas is not None and replicas > of.idle_replicas
        if above_idle or (replicas > 0 and of.min_replicas == 0):
            since, period = self._last_active, of.cooldown_period_s
            if since is None:
                since, period = self._created_at, of.initial_cooldown_period_s
            if now - since > period:
                rest = of.idle_replicas if of.idle_replicas is not None else of.min_replicas
                return Decision(rest, f"inactive for {now - since:.0f} s")
            return Decision(replicas, f"cooling down: inactive for {now - since:.0f} of {period} s")
        if of.idle_replicas is None and replicas < of.min_replicas:
            return Decision(of.min_replicas, "below minReplicaCount")
        return Decision(replicas, "inactive")


def is_active(scaled_object: ScaledObject, readings: Readings) -> bool:
    """Return whether any trigger falls back or is above its activation value; at the value it is not."""
    return any(
        reading.fallback or (reading.value is not None and reading.value > trigger.activation)
        for trigger, reading in zip(scaled_object.triggers, readings, strict=True)
    )
