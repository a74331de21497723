"""How fast the HPA may scale: stabilization windows, policies, and the older rules where none are set.

Follows pkg/controller/podautoscaler/horizontal.go of Kubernetes 1.33. The state is a history of
recommendations and changes; the caller passes the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from inferfleet.local.autoscaler.scaled_object import Behavior, Policy, Rules

DOWN_WINDOW_S = 300
"""``--horizontal-pod-autoscaler-downscale-stabilization``: the window where a manifest names none."""

UP_POLICIES = (
    Policy(type="Pods", value=4, period_seconds=15),
    Policy(type="Percent", value=100, period_seconds=15),
)
DOWN_POLICIES = (Policy(type="Percent", value=100, period_seconds=15),)
"""The policies that the API server adds to a behavior without policies."""

UP_FACTOR = 2
UP_LEAST = 4
"""Without a behavior, one sync at most doubles the replicas, but may always go up to 4."""

LONGEST_S = 3600
"""No window and no period is longer."""


class _Change(NamedTuple):
    at: float
    by: int


class _Recommendation(NamedTuple):
    at: float
    replicas: int


class Pace:
    """The history of one HPA, and what it allows."""

    def __init__(self, behavior: Behavior | None, *, min_replicas: int, max_replicas: int) -> None:
        self._behavior = behavior
        self._min = min_replicas
        self._max = max_replicas
        self._recommendations: list[_Recommendation] | None = None
        self._changes: list[_Change] = []

    def begin(self, *, now: float, replicas: int) -> None:
        """Record the number of replicas at the first sync, which counts as a recommendation."""
        if self._recommendations is None:
            self._recommendations = [_Recommendation(now, replicas)]

    def changed(self, *, now: float, before: int, after: int) -> None:
        """Record a change by this HPA. Its policies do not count changes by others."""
        self._changes = [change for change in self._changes if now - change.at < LONGEST_S]
        if after != before:
            self._changes.append(_Change(now, after - before))

    def allow(self, recommended: int, *, now: float, replicas: int) -> tuple[int, str]:
        """Limit a recommendation to what is allowed now; also return what limited it, if anything."""
        history = [it for it in self._recommendations or () if now - it.at <= LONGEST_S]
        self._recommendations = [*history, _Recommendation(now, recommended)]
        if self._behavior is None:
            return self._allow_without_behavior(history, recommended, now=now, replicas=replicas)
        up, down = self._behavior.scale_up, self._behavior.scale_down
        stable = _stabilize(history, recommended, now=now, replicas=replicas, behavior=self._behavior)
        held = "a stabilization window" if stable != recommended else ""
        if stable > replicas:
            limit = max(replicas, self._up_limit(up, now=now, replicas=replicas))
            if stable > min(limit, self._max):
                return min(limit, self._max), "a scaleUp policy" if limit < self._max else "maxReplicaCount"
        elif stable < replicas:
            limit = min(replicas, self._down_limit(down, now=now, replicas=replicas))
            if stable < max(limit, self._min):
                return max(
                    limit, self._min
                ), "a scaleDown policy" if limit > self._min else "the least number"
        return stable, held

    def _allow_without_behavior(
        self, history: Iterable[_Recommendation], recommended: int, *, now: float, replicas: int
    ) -> tuple[int, str]:
        recent = [it.replicas for it in history if now - it.at <= DOWN_WINDOW_S]
        stable = max([recommended, *recent])
        limit = max(UP_FACTOR * replicas, UP_LEAST)
        if stable < self._min:
            return self._min, "the least number"
        if stable > min(limit, self._max):
            return min(limit, self._max), "doubling at most" if limit < self._max else "maxReplicaCount"
        return stable, "the stabilization window" if stable != recommended else ""

    def _up_limit(self, rules: Rules, *, now: float, replicas: int) -> int:
        if rules.select_policy == "Disabled":
            return replicas
        choose = min if rules.select_policy == "Min" else max
        return choose(
            start + policy.value
            if policy.type == "Pods"
            # Rounded up, or a single replica would never grow by 10 percent.
            else math.ceil(start * (1 + policy.value / 100))
            for policy, start in self._starts(rules.policies or UP_POLICIES, now, replicas)
        )

    def _down_limit(self, rules: Rules, *, now: float, replicas: int) -> int:
        if rules.select_policy == "Disabled":
            return replicas
        # The smallest change is the highest number.
        choose = max if rules.select_policy == "Min" else min
        return choose(
            start - policy.value if policy.type == "Pods" else int(start * (1 - policy.value / 100))
            for policy, start in self._starts(rules.policies or DOWN_POLICIES, now, replicas)
        )

    def _starts(self, policies: Iterable[Policy], now: float, replicas: int) -> list[tuple[Policy, int]]:
        """Return each policy with the number of replicas at the start of its period."""
        return [
            (policy, replicas - sum(it.by for it in self._changes if now - it.at < policy.period_seconds))
            for policy in policies
        ]


def _stabilize(
    history: Iterable[_Recommendation], recommended: int, *, now: float, replicas: int, behavior: Behavior
) -> int:
    """Go up only to the lowest, and down only to the highest recommendation of the window."""
    up_s = behavior.scale_up.stabilization_window_seconds or 0
    down_s = behavior.scale_down.stabilization_window_seconds
    down_s = DOWN_WINDOW_S if down_s is None else down_s
    lowest = min([recommended, *(it.replicas for it in history if now - it.at < up_s)])
    highest = max([recommended, *(it.replicas for it in history if now - it.at < down_s)])
    return min(max(replicas, lowest), highest)
