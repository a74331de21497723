"""KEDA's part of the autoscaler, step by step, against cases worked out from KEDA's documents and source.

Each case names where it comes from. ``executor`` is pkg/scaling/executor/scale_scaledobjects.go of KEDA 2.20,
``spec`` is keda.sh/docs/latest/reference/scaledobject-spec.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from inferfleet.local.autoscaler.decision import Reading
from inferfleet.local.autoscaler.scaled_object import parse_scaled_object
from inferfleet.local.autoscaler.scaler import Scaler

FAILED = None


@dataclass(frozen=True)
class Case:
    """Steps are (time, value of each trigger, replicas found, replicas wanted)."""

    name: str
    steps: list[tuple[float, list[float | None], int, int]]
    spec: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    triggers: int = 1
    activation: str = "0"
    metric_type: str = "AverageValue"


CASES = [
    # executor: `currentReplicas == 0` and active -> scaleFromZeroOrIdle
    Case("one message wakes one replica", [(0, [1], 0, 1)]),
    # executor, scaleFromZeroOrIdle: minReplicaCount if it is above 0, else 1
    Case("it wakes as many as minReplicaCount", [(0, [1], 0, 3)], spec={"minReplicaCount": 3}),
    # docs, scaling-deployments, "Activating and scaling thresholds": active if metric > activation
    Case("at the activation value it sleeps", [(0, [5], 0, 0)], activation="5"),
    Case("above the activation value it wakes", [(0, [6], 0, 1)], activation="5"),
    # the same page: the activation phase has priority over the scaling phase. value 20, activation 50, metric
    # 40: not active, although the HPA would want two.
    Case("below activation it goes to zero whatever the HPA wants", [(1, [40], 2, 0)], activation="50"),
    # scale_handler.go, getScaledObjectState: active if any scaler is
    Case("any active trigger wakes it", [(0, [0, 3], 0, 1)], triggers=2),
    # executor, default branch: with replicas there, only lastActiveTime is updated
    Case("awake, the number is not its business", [(0, [1000], 1, 1)]),
    # executor, scaleToZeroOrIdle: lastActiveTime + cooldownPeriod before now
    Case(
        "it sleeps once the cooldown has passed since it was last active",
        [(0, [1], 0, 1), (30, [1], 1, 1), (60, [0], 1, 1), (330, [0], 1, 1), (331, [0], 1, 0)],
    ),
    Case(
        "work during the cooldown starts it anew",
        [(0, [1], 0, 1), (290, [0], 1, 1), (299, [1], 1, 1), (590, [0], 1, 1), (600, [0], 1, 0)],
    ),
    # keda#7770: N -> 0 is one step; executor sets replicas to minReplicaCount = 0 past the HPA
    Case(
        "from many to zero is one step, past the HPA's policies",
        [(0, [100], 0, 1), (30, [0], 8, 8), (301, [0], 8, 0)],
        spec={
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    "behavior": {
                        "scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 600}]}
                    }
                }
            }
        },
    ),
    # keda#6844: cooldownPeriod concerns only the step to zero; 8 -> 1 before is the HPA's
    Case("the cooldown does not hold many replicas", [(0, [1], 0, 1), (30, [0], 1, 1)]),
    Case(
        "with a minimum above zero it never goes below",
        [(0, [5], 4, 4), (1000, [0], 4, 4)],
        spec={"minReplicaCount": 2},
    ),
    # executor: inactive and currentReplicas < minReplicas
    Case("inactive below the minimum goes up to it", [(0, [0], 1, 2)], spec={"minReplicaCount": 2}),
    # executor: lastActiveTime nil and initialCooldownPeriod passed since creation (default 0)
    Case("never active, it sleeps at once", [(1, [0], 3, 0)]),
    Case(
        "never active, it waits for initialCooldownPeriod",
        [(1, [0], 3, 3), (120, [0], 3, 3), (121, [0], 3, 0)],
        spec={"initialCooldownPeriod": 120},
    ),
    # executor, `case isError && Fallback == nil`: nothing is changed
    Case(
        "a failing trigger without a fallback puts nothing to sleep",
        [(0, [1], 0, 1), (1000, [FAILED], 4, 4)],
    ),
    # executor, `case isError && Fallback.Replicas != 0`: kept, so that the HPA can reach the fallback
    Case(
        "a failing trigger with a fallback puts nothing to sleep",
        [(0, [1], 0, 1), (1000, [FAILED], 4, 4)],
        spec={"fallback": {"failureThreshold": 3, "replicas": 2}},
    ),
    # executor: a fallback of 0 replicas does not catch that case, so the cooldown decides
    Case(
        "with a fallback of zero a failing trigger counts as inactive",
        [(0, [1], 0, 1), (1000, [FAILED], 4, 0)],
        spec={"fallback": {"failureThreshold": 3, "replicas": 0}},
    ),
    # scale_handler.go, getScalerState: "When fallback is active, the scaler should be considered active"
    # (keda#7239, since 2.19)
    Case(
        "a fallback starts a first replica once its threshold is passed",
        [(0, [FAILED], 0, 0), (30, [FAILED], 0, 1)],
        spec={"fallback": {"failureThreshold": 1, "replicas": 3}},
    ),
    Case(
        "a fallback starts the cooldown anew",
        [(0, [90], 0, 1), (30, [FAILED], 8, 8), (330, [FAILED], 8, 8), (340, [0], 8, 8), (640, [0], 8, 0)],
        spec={"fallback": {"failureThreshold": 0, "replicas": 1}},
    ),
    # doFallback: nothing to divide by
    Case(
        "a fallback of type Value starts nothing from zero",
        [(0, [FAILED], 0, 0), (30, [FAILED], 0, 0)],
        spec={"fallback": {"failureThreshold": 0, "replicas": 3}},
        metric_type="Value",
    ),
    # executor, `case isError` of the active branch: lastActiveTime stays
    Case(
        "active by one trigger while another fails does not renew the cooldown",
        [(0, [1, 0], 0, 1), (200, [1, FAILED], 1, 1), (301, [0, 0], 1, 0)],
        triggers=2,
    ),
    # keda#7180: a queue without statistics yet reads as 0, which is inactive and not an error
    Case("missing statistics read as zero and put it to sleep", [(1, [0], 2, 0)]),
    # Both together: errors do not renew lastActiveTime, and what RabbitMQ says first after a restart is 0
    Case(
        "after a cooldown with failures too few for a fallback a fleet goes to zero on the first reading",
        [(0, [90], 0, 1), (30, [FAILED], 8, 8), (330, [FAILED], 8, 8), (340, [0], 8, 0), (350, [90], 0, 1)],
        spec={"fallback": {"failureThreshold": 3, "replicas": 1}},
    ),
    Case(
        "unless another trigger says that it knows nothing",
        [(0, [90, 9], 0, 1), (30, [FAILED, FAILED], 8, 8), (340, [0, FAILED], 8, 8), (350, [90, 9], 8, 8)],
        spec={"fallback": {"failureThreshold": 3, "replicas": 1}},
        triggers=2,
    ),
    # spec, idleReplicaCount: inactive scales to it, active to minReplicaCount
    Case(
        "idleReplicaCount replaces the minimum while inactive",
        [(0, [1], 0, 2), (400, [0], 2, 0), (430, [1], 0, 2)],
        spec={"idleReplicaCount": 0, "minReplicaCount": 2},
    ),
    # docs, scaling-deployments, "Pausing autoscaling"
    Case("paused, it stays where it is", [(0, [9], 3, 3)], annotations={"paused": "true"}),
    Case("paused at a number, it goes there", [(0, [9], 3, 1)], annotations={"paused-replicas": "1"}),
    Case("paused: false is not paused", [(0, [9], 0, 1)], annotations={"paused": "false"}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_decides_as_keda_does(case: Case) -> None:
    trigger = {
        "type": "rabbitmq",
        "metricType": case.metric_type,
        "metadata": {
            "queueName": "inferfleet.jobs.chat",
            "protocol": "http",
            "mode": "QueueLength",
            "value": "20",
            "activationValue": case.activation,
        },
    }
    scaled_object = parse_scaled_object(
        {
            "metadata": {
                "name": "worker",
                "annotations": {
                    f"autoscaling.keda.sh/{name}": value for name, value in case.annotations.items()
                },
            },
            "spec": {"scaleTargetRef": {"name": "worker"}, "triggers": [trigger] * case.triggers} | case.spec,
        }
    )
    scaler = Scaler(scaled_object, now=0)

    for now, values, replicas, wanted in case.steps:
        decision = scaler.poll(now=now, readings=[Reading(value) for value in values], replicas=replicas)
        assert decision.replicas == wanted, f"at {now} s: {decision.reason}"
