"""Reading a ScaledObject: KEDA's defaults, and a plain word for what cannot be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inferfleet.local.autoscaler.scaled_object import ScaledObject, parse_scaled_object, read_scaled_object
from inferfleet.local.autoscaler.triggers import (
    PrometheusTrigger,
    Protocol,
    RabbitMQTrigger,
    consumption_time_s,
)
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.names import job_queues

LEAST = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: worker}
spec:
  scaleTargetRef: {name: worker}
  triggers:
    - type: rabbitmq
      metadata: {queueName: inferfleet.jobs.chat, protocol: http, mode: QueueLength, value: "48"}
"""


def rabbitmq(**metadata: Any) -> dict[str, Any]:
    return {
        "type": "rabbitmq",
        "metadata": {"queueName": "inferfleet.jobs.chat", "protocol": "http"} | metadata,
    }


def parse(*triggers: dict[str, Any], annotations: dict[str, str] | None = None, **spec: Any) -> ScaledObject:
    return parse_scaled_object(
        {
            "metadata": {"name": "worker", "annotations": annotations or {}},
            "spec": {"scaleTargetRef": {"name": "worker"}, "triggers": list(triggers), **spec},
        }
    )


def test_what_is_left_out_is_as_keda_has_it(tmp_path: Path) -> None:
    file = tmp_path / "scaledobject.yaml"
    file.write_text(LEAST)

    read = read_scaled_object(file)

    assert (read.name, read.target, read.pool) == ("worker", "worker", "chat")
    assert (read.polling_interval_s, read.cooldown_period_s, read.initial_cooldown_period_s) == (30, 300, 0)
    assert (read.min_replicas, read.max_replicas, read.idle_replicas) == (0, 100, None)
    assert (read.fallback, read.behavior, read.paused) == (None, None, False)
    assert read.triggers == (
        RabbitMQTrigger(name="s0-rabbitmq", queue="inferfleet.jobs.chat", protocol=Protocol.HTTP, target=48),
    )


def test_other_documents_of_the_file_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(f"kind: Deployment\nmetadata: {{name: worker}}\n---\n{LEAST}\n---\n")

    assert read_scaled_object(file).name == "worker"


def test_of_several_one_must_be_named(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(f"{LEAST}\n---\n{LEAST.replace('name: worker', 'name: coder')}")

    with pytest.raises(ConfigurationError, match="holds 2 ScaledObjects; choose with --name: worker, coder"):
        read_scaled_object(file)
    assert read_scaled_object(file, name="coder").name == "coder"


@pytest.mark.parametrize(
    ("content", "problem"),
    [("kind: Deployment", "kubectl kustomize"), ("a: [", "is not YAML"), ("", "holds no ScaledObject")],
)
def test_a_file_without_one_says_what_to_do(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(content)

    with pytest.raises(ConfigurationError, match=problem):
        read_scaled_object(file)


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_scaled_object(tmp_path / "none.yaml")


def test_a_trigger_without_mode_and_value_wants_twenty_messages_a_replica() -> None:
    assert parse(rabbitmq()).triggers[0].target == 20


def test_a_deprecated_queue_length_counts_as_value() -> None:
    assert parse(rabbitmq(queueLength="7")).triggers[0].target == 7


@pytest.mark.parametrize(
    ("host", "protocol"),
    [("http://guest@rabbitmq:15672/", Protocol.HTTP), ("amqps://rabbitmq/", Protocol.AMQP)],
)
def test_protocol_auto_follows_the_host(host: str, protocol: Protocol) -> None:
    (trigger,) = parse(rabbitmq(protocol="auto", host=host)).triggers

    assert isinstance(trigger, RabbitMQTrigger)
    assert trigger.protocol is protocol


def test_a_prometheus_trigger_takes_no_data_for_zero_unless_told_otherwise() -> None:
    metadata = {"serverAddress": "http://prometheus:9090", "query": "up", "threshold": "60"}

    silent, strict = parse(
        {"type": "prometheus", "metadata": metadata},
        {"type": "prometheus", "name": "age", "metadata": metadata | {"ignoreNullValues": "false"}},
    ).triggers

    assert isinstance(silent, PrometheusTrigger)
    assert isinstance(strict, PrometheusTrigger)
    assert (silent.ignore_null_values, strict.ignore_null_values) == (True, False)
    assert (silent.name, strict.name, silent.target) == ("s0-prometheus", "age", 60)


def test_all_queues_of_a_pool_are_followed_and_the_pool_is_known() -> None:
    regex: dict[str, Any] = {"mode": "QueueLength", "value": "5", "useRegex": "true"}
    queues = job_queues("chat.v2")
    read = parse(rabbitmq(queueName=queues, **regex))
    assert read.pool == "chat.v2"
    assert read.triggers == (
        RabbitMQTrigger(name="s0-rabbitmq", queue=queues, page_size=100, protocol=Protocol.HTTP, target=5),
    )
    (large,) = parse(rabbitmq(queueName=queues, operation="sum", pageSize="500", **regex)).triggers
    assert isinstance(large, RabbitMQTrigger)
    assert large.page_size == 500
    with pytest.raises(ConfigurationError, match="which pool's workers to start"):
        _ = parse(rabbitmq(queueName="^inferfleet[.]jobs[.]", **regex)).pool


def test_what_means_nothing_here_is_remarked() -> None:
    read = parse(rabbitmq(), advanced={"restoreToOriginalReplicaCount": True})

    assert "restoreToOriginalReplicaCount means nothing here" in read.remarks[0]


@pytest.mark.parametrize(
    ("trigger", "problem"),
    [
        ({"type": "kafka", "metadata": {}}, r"trigger 0 \(kafka\): this type cannot be run here"),
        ({"type": "rabbitmq"}, "metadata is missing"),
        (rabbitmq(value="5"), "mode must be given together with value"),
        (rabbitmq(mode="QueueLength"), "value is missing"),
        (rabbitmq(mode="QueueLength", value=5), "values in metadata are strings, put it in quotes"),
        (rabbitmq(mode="QueueLength", value="many"), "value is 'many', not a number"),
        (rabbitmq(mode="QueueLength", value="nan"), "value is 'nan', not a number to compare with"),
        (rabbitmq(mode="QueueLength", value="0"), "it must be above 0"),
        (rabbitmq(mode="MessageRate", value="5"), "mode 'MessageRate' cannot be run here"),
        (
            rabbitmq(mode="ExpectedQueueConsumptionTime", value="5", protocol="amqp"),
            "mode ExpectedQueueConsumptionTime needs the http protocol",
        ),
        (rabbitmq(mode="QueueLength", queueLength="5"), "queueLength is deprecated"),
        (rabbitmq(protocol="stomp"), "protocol 'stomp' is not one of"),
        (rabbitmq(protocol="auto"), "protocol 'auto' follows the scheme of host"),
        (rabbitmq(protocol="amqp", excludeUnacknowledged="true"), "needs the http protocol"),
        (rabbitmq(useRegex="true", operation="max"), "operation 'max' cannot be run here"),
        (rabbitmq(useRegex="true", protocol="amqp"), "useRegex needs the http protocol"),
        (rabbitmq(useRegex="perhaps"), "not true or false"),
        (rabbitmq() | {"metricType": "Utilization"}, "metricType 'Utilization' is not one of"),
        ({"type": "prometheus", "metadata": {"query": "up", "threshold": "1"}}, "serverAddress is missing"),
    ],
)
def test_a_wrong_trigger_is_refused_with_a_reason(trigger: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        parse(trigger)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"minReplicaCount": 3, "maxReplicaCount": 2}, "minReplicaCount must be less than or equal"),
        ({"minReplicaCount": 1, "idleReplicaCount": 1}, "idleReplicaCount must be less than minReplicaCount"),
        ({"pollingIntervall": 5}, "pollingIntervall: Extra inputs"),
        ({"pollingInterval": 0}, "pollingInterval: "),
        (
            {"advanced": {"scalingModifiers": {"formula": "a + b"}}},
            "scalingModifiers cannot be followed here",
        ),
    ],
)
def test_a_wrong_spec_is_refused_with_a_reason(spec: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        parse(rabbitmq(), **spec)


def test_a_fleet_that_keda_would_never_take_to_zero_is_refused() -> None:
    trigger = rabbitmq(mode="ExpectedQueueConsumptionTime", value="30")
    assert parse(trigger, minReplicaCount=1).triggers[0].target == 30
    with pytest.raises(ConfigurationError, match=r"minReplicaCount is 0.+write 1"):
        parse(trigger, minReplicaCount=0)


@pytest.mark.parametrize(
    ("messages", "published_per_s", "delivered_per_s", "expected_s"),
    [
        (300, 10, 10, 30),
        (300, 20, 10, 31),
        (0, 0, 10, -1),
        (300, 10, 0, 7),
    ],
)
def test_the_consumption_time_is_kedas(
    messages: float, published_per_s: float, delivered_per_s: float, expected_s: float
) -> None:
    """rabbitmq_scaler.go of KEDA 2.20.2; without deliveries it is the activation value."""
    assert expected_s == consumption_time_s(
        messages, published_per_s=published_per_s, delivered_per_s=delivered_per_s, activation=7
    )


def test_an_annotation_that_would_change_decisions_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="paused-scale-in cannot be followed here"):
        parse(rabbitmq(), annotations={"autoscaling.keda.sh/paused-scale-in": "true"})


def test_a_queue_that_is_no_pool_of_ours_starts_no_workers() -> None:
    with pytest.raises(ConfigurationError, match="has no rabbitmq trigger on a queue"):
        _ = parse(rabbitmq(queueName="orders")).pool
