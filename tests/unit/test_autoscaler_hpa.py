"""The HPA's part of the autoscaler, step by step, against cases worked out from Kubernetes' documents.

Each case names where it comes from. ``horizontal`` and ``calculator`` are horizontal.go and
replica_calculator.go of pkg/controller/podautoscaler, Kubernetes 1.33. ``docs`` is
kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale. ``fallback`` is pkg/fallback/fallback.go
of KEDA.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from inferfleet.local.autoscaler.decision import Reading
from inferfleet.local.autoscaler.scaled_object import parse_scaled_object
from inferfleet.local.autoscaler.scaler import Scaler

FAILED = None
SOON_DOWN = {"stabilizationWindowSeconds": 0}


def pods(value: int, period: int = 60) -> dict[str, Any]:
    return {"type": "Pods", "value": value, "periodSeconds": period}


def percent(value: int, period: int = 60) -> dict[str, Any]:
    return {"type": "Percent", "value": value, "periodSeconds": period}


@dataclass(frozen=True)
class Case:
    """Steps are (time, value of each trigger, replicas found, replicas wanted). The target is 10."""

    name: str
    steps: list[tuple[float, list[float | None], int, int]]
    behavior: dict[str, Any] | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    triggers: int = 1
    metric_type: str = "AverageValue"


CASES = [
    # Without a behavior: horizontal, normalizeDesiredReplicas
    # docs, "Algorithm details": desired = ceil(metric / target)
    Case("the number is rounded up", [(0, [21], 2, 2), (15, [31], 2, 4)]),
    # calculator, Tolerances.isWithin: 0.9 <= ratio <= 1.1, both edges included
    Case("a ratio of 1.1 is within the tolerance", [(0, [22], 2, 2)]),
    Case("a ratio just above 1.1 is not", [(0, [22.1], 2, 3)]),
    Case("a ratio of 0.9 is within the tolerance", [(0, [18], 2, 2)], behavior={"scaleDown": SOON_DOWN}),
    Case("a ratio just below 0.9 is not", [(0, [89], 10, 9)], behavior={"scaleDown": SOON_DOWN}),
    # horizontal, calculateScaleUpLimit: max(2 x current, 4)
    Case("legacy: one replica becomes at most four", [(0, [1000], 1, 4)]),
    Case("legacy: five become at most ten", [(0, [1000], 5, 10)]),
    Case(
        "legacy: it doubles at each sync up to the maximum",
        [(0, [1000], 1, 4), (15, [1000], 4, 8), (30, [1000], 8, 16), (45, [1000], 16, 20)],
        spec={"maxReplicaCount": 20},
    ),
    # horizontal, stabilizeRecommendation: the highest of the last 300 s; at 300 s it still counts
    Case(
        "legacy: down only to the highest of five minutes",
        [(0, [80], 8, 8), (15, [10], 8, 8), (300, [10], 8, 8), (315, [10], 8, 1)],
    ),
    # horizontal, recordInitialRecommendation: the number found counts as a recommendation
    Case(
        "legacy: the number found at the start holds for five minutes", [(0, [10], 6, 6), (301, [10], 6, 1)]
    ),
    # horizontal, convertDesiredReplicasWithRules: never below min, which KEDA makes at least 1
    Case("an empty queue leaves one replica: the last step is KEDA's", [(0, [0], 1, 1), (301, [0], 1, 1)]),
    Case("with a minimum it stays there", [(0, [0], 3, 3), (301, [0], 3, 2)], spec={"minReplicaCount": 2}),
    # horizontal, reconcileAutoscaler: above max and below min are corrected before metrics count
    Case("above the maximum it goes there", [(0, [1000], 9, 5)], spec={"maxReplicaCount": 5}),
    Case("below the minimum it goes there", [(0, [0], 1, 3)], spec={"minReplicaCount": 3}),
    # docs, "Implicit maintenance-mode deactivation"
    Case("at zero replicas it does nothing", [(0, [1000], 0, 0)]),
    # horizontal, computeReplicasForMetrics: the maximum of all proposals
    Case("of several triggers the highest proposal counts", [(0, [15, 38], 2, 4)], triggers=2),
    # the same: `invalidMetricsCount > 0 && replicas < specReplicas` is an error, up goes on
    Case("a failing trigger blocks the way down", [(400, [10, FAILED], 5, 5)], triggers=2),
    Case("a failing trigger does not block the way up", [(0, [60, FAILED], 4, 6)], triggers=2),
    Case("with all triggers failing nothing changes", [(0, [FAILED], 4, 4), (900, [FAILED], 4, 4)]),
    # calculator, GetExternalMetricReplicas: target type Value compares without dividing by the replicas
    Case("metricType Value multiplies the replicas by the ratio", [(0, [15], 2, 3)], metric_type="Value"),
    # With a behavior: horizontal, normalizeDesiredReplicasWithBehaviors
    # autoscaling/v2 defaults.go: up 4 pods or 100 percent in 15 s, whichever is more
    Case(
        "default policies: four more, or twice as many", [(0, [1000], 2, 6), (15, [1000], 6, 12)], behavior={}
    ),
    # defaults.go: down 100 percent in 15 s, 300 s window. After(cutoff): at 300 s it no longer counts
    Case(
        "default window down: five minutes",
        [(0, [80], 8, 8), (15, [10], 8, 8), (299, [10], 8, 8), (300, [10], 8, 1)],
        behavior={},
    ),
    Case("a window of 0 goes down at once", [(0, [10], 8, 1)], behavior={"scaleDown": SOON_DOWN}),
    # docs, "Stabilization window": up, the lowest of the window is taken
    Case(
        "a window up waits until the need has lasted",
        [(0, [10], 1, 1), (30, [40], 1, 1), (60, [40], 1, 4)],
        behavior={"scaleUp": {"stabilizationWindowSeconds": 60}},
    ),
    # stabilizeRecommendationWithBehaviors: up to the lowest of the window, not to the newest
    Case(
        "a window up rises to the lowest need of the window",
        [(0, [10], 1, 1), (45, [30], 1, 1), (75, [80], 1, 3)],
        behavior={"scaleUp": {"stabilizationWindowSeconds": 60}},
    ),
    # docs, "Scaling policies"
    Case(
        "a policy of pods counts what its period has brought",
        [(0, [1000], 1, 3), (15, [1000], 3, 3), (59, [1000], 3, 3), (60, [1000], 3, 5)],
        behavior={"scaleUp": {"policies": [pods(2)]}},
    ),
    # calculateScaleUpLimitWithScalingRules: rounded up, or it would never scale
    Case("percent up is rounded up", [(0, [1000], 1, 2)], behavior={"scaleUp": {"policies": [percent(10)]}}),
    # calculateScaleDownLimitWithBehaviors: int32() of the rest, so more is removed than 10 percent of 15
    Case(
        "percent down cuts the rest off",
        [(0, [10], 15, 13)],
        behavior={"scaleDown": SOON_DOWN | {"policies": [percent(10)]}},
    ),
    # docs: "4 Pods or 10 percent" for 80 replicas: 8, and 4 once 40 and fewer are left
    Case(
        "of two policies the bigger change counts",
        [(0, [10], 80, 72), (60, [10], 72, 64), (120, [10], 30, 26)],
        behavior={"scaleDown": SOON_DOWN | {"policies": [pods(4), percent(10)]}},
    ),
    Case(
        "selectPolicy Min takes the smaller change",
        [(0, [10], 80, 76)],
        behavior={"scaleDown": SOON_DOWN | {"policies": [pods(4), percent(10)], "selectPolicy": "Min"}},
    ),
    Case(
        "selectPolicy Min up takes the smaller change",
        [(0, [1000], 10, 12)],
        behavior={"scaleUp": {"policies": [pods(2), percent(100)], "selectPolicy": "Min"}},
    ),
    Case(
        "selectPolicy Disabled never scales that way",
        [(0, [10], 8, 8), (900, [10], 8, 8)],
        behavior={"scaleDown": SOON_DOWN | {"selectPolicy": "Disabled"}},
    ),
    # calculateScaleUpLimitWithScalingRules: start of period = current - added + removed
    Case(
        "what was taken away in the period may come back",
        [(0, [60], 8, 6), (15, [1000], 6, 10)],
        behavior={"scaleUp": {"policies": [pods(2)]}, "scaleDown": SOON_DOWN | {"policies": [pods(2)]}},
    ),
    # storeScaleEvent is called by the HPA alone: KEDA's step from zero is not in its history
    Case(
        "KEDA's step from zero takes nothing from the policies",
        [(0, [1000], 0, 0), (15, [1000], 1, 3)],
        behavior={"scaleUp": {"policies": [pods(2)]}},
    ),
    # HPAConfigurableTolerance: behavior.scaleUp.tolerance
    Case("a tolerance of its own", [(0, [21], 2, 3)], behavior={"scaleUp": {"tolerance": 0.01}}),
    # fallback: failures in a row > failureThreshold, then target x replicas is reported
    Case(
        "a fallback comes after more failures than its threshold",
        [(0, [FAILED], 2, 2), (15, [FAILED], 2, 2), (30, [FAILED], 2, 4)],
        spec={"fallback": {"failureThreshold": 2, "replicas": 4}},
    ),
    Case(
        "one success starts the count anew",
        [(0, [FAILED], 2, 2), (15, [20], 2, 2), (30, [FAILED], 2, 2), (45, [FAILED], 2, 4)],
        spec={"fallback": {"failureThreshold": 1, "replicas": 4}},
    ),
    # fallback: the HPA does not ask at zero, so nothing is counted there
    Case(
        "failures at zero replicas do not count",
        [(0, [FAILED], 0, 0), (15, [FAILED], 0, 0), (30, [FAILED], 1, 1), (45, [FAILED], 1, 4)],
        spec={"fallback": {"failureThreshold": 1, "replicas": 4}},
    ),
    # scaledobject-spec since 2.18 (keda#6655): for Value, target x fallback replicas / ready replicas
    Case(
        "a trigger of type Value falls back to the same number",
        [(0, [FAILED], 2, 2), (15, [FAILED], 2, 5), (30, [FAILED], 5, 5)],
        spec={"fallback": {"failureThreshold": 1, "replicas": 5}},
        behavior={},
        metric_type="Value",
    ),
    Case(
        "a fallback of type Value is not one too many by rounding",
        [(0, [FAILED], 3, 5)],
        spec={"fallback": {"failureThreshold": 0, "replicas": 5}},
        metric_type="Value",
    ),
    # A fallback is what the HPA is told of one trigger: the highest proposal still counts (keda#6659)
    Case(
        "beside a fallback a trigger that can be read still asks for more",
        [(0, [70, FAILED], 3, 7)],
        spec={"fallback": {"failureThreshold": 0, "replicas": 2}},
        triggers=2,
        behavior={},
    ),
    # doFallback: static, currentReplicas, currentReplicasIfHigher, currentReplicasIfLower
    Case(
        "fallback currentReplicasIfHigher keeps more",
        [(0, [FAILED], 7, 7)],
        spec={"fallback": {"failureThreshold": 0, "replicas": 5, "behavior": "currentReplicasIfHigher"}},
    ),
    Case(
        "fallback currentReplicasIfLower keeps fewer",
        [(0, [FAILED], 2, 2)],
        spec={"fallback": {"failureThreshold": 0, "replicas": 5, "behavior": "currentReplicasIfLower"}},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_decides_as_the_hpa_does(case: Case) -> None:
    trigger = {
        "type": "rabbitmq",
        "metricType": case.metric_type,
        "metadata": {"queueName": "q", "protocol": "http", "mode": "QueueLength", "value": "10"},
    }
    spec = {"scaleTargetRef": {"name": "worker"}, "triggers": [trigger] * case.triggers} | case.spec
    if case.behavior is not None:
        spec["advanced"] = {"horizontalPodAutoscalerConfig": {"behavior": case.behavior}}
    scaler = Scaler(parse_scaled_object({"metadata": {"name": "worker"}, "spec": spec}), now=0)

    for now, values, replicas, wanted in case.steps:
        decision = scaler.sync(now=now, readings=[Reading(value) for value in values], replicas=replicas)
        assert decision.replicas == wanted, f"at {now} s: {decision.reason}"
