"""KEDA and the HPA together, on the caller's clock."""

from __future__ import annotations

from inferfleet.local.autoscaler.decision import Decision, Readings
from inferfleet.local.autoscaler.fallback import FailureCounts
from inferfleet.local.autoscaler.hpa import Hpa
from inferfleet.local.autoscaler.keda import Activation
from inferfleet.local.autoscaler.scaled_object import ScaledObject


class Scaler:
    """Decides for one ScaledObject, by ``poll`` and by ``sync``.

    Call ``poll`` every ``pollingInterval`` and ``sync`` every ``hpa.SYNC_S``, both with current readings:
    KEDA measures again whenever the HPA queries it.
    """

    def __init__(self, scaled_object: ScaledObject, *, now: float) -> None:
        self._activation = Activation(scaled_object, created_at=now)
        self._failures = FailureCounts(scaled_object)
        self._hpa = Hpa(scaled_object)

    def poll(self, *, now: float, readings: Readings, replicas: int) -> Decision:
        """Decide as KEDA does, with its fallback for failing triggers."""
        readings = self._failures.answer(readings, replicas=replicas)
        return self._activation.decide(now=now, readings=readings, replicas=replicas)

    def sync(self, *, now: float, readings: Readings, replicas: int) -> Decision:
        """Decide as the HPA does, with KEDA's fallback for failing triggers."""
        if replicas:
            readings = self._failures.answer(readings, replicas=replicas)
        return self._hpa.decide(now=now, readings=readings, replicas=replicas)
