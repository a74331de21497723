"""What no schema can check of the manifests: that they agree with the code, and scale what they mean."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic_settings import BaseSettings
from tests.deploy.conftest import (
    KEDA,
    Manifests,
    ReadSettings,
    containers,
    pod,
)

from inferfleet.agents.settings import RunnerSettings
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.local.autoscaler.scaled_object import parse_scaled_object, read_scaled_object
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.health_port import LIVE_PATH, METRICS_PATH, READY_PATH
from inferfleet.worker.worker import SETTLE_GRACE_S

ENGINE_STOP_S = 10
"""What vLLM may take to end, at most, after the last job is settled."""

LONG_LOAD_S = 15 * 60
"""A large model from a slow volume."""


def fields_of(*settings: type[BaseSettings]) -> set[str]:
    return {f"INFERFLEET_{name.upper()}" for each in settings for name in each.model_fields}


# Names that the code reads


def test_every_variable_is_a_setting(manifests: Manifests) -> None:
    known = fields_of(WorkerSettings, GatewaySettings, ExporterSettings, RunnerSettings)
    for workload in manifests.ours:
        used = set(manifests.variables(workload))
        for container in containers(workload):
            used |= {line["name"] for line in container.get("env", [])}
        assert {name for name in used if name.startswith("INFERFLEET_")} <= known, workload["metadata"][
            "name"
        ]


def test_a_worker_accepts_its_settings(manifests: Manifests, settings_of: ReadSettings) -> None:
    assert manifests.workers
    for worker in manifests.workers:
        settings = settings_of(worker, manifests)
        engines = {"overlays/dev": "simulated", "overlays/vllm-sidecar": "openai"}
        assert settings.engine == engines.get(manifests.name, "vllm")
        assert settings.model


def test_a_worker_knows_its_pod(manifests: Manifests) -> None:
    for worker in manifests.workers:
        fields = {
            line["name"]: line["valueFrom"]["fieldRef"]["fieldPath"]
            for line in containers(worker)[0]["env"]
            if "fieldRef" in line.get("valueFrom", {})
        }
        assert fields == {
            "INFERFLEET_WORKER_ID": "metadata.name",
            "INFERFLEET_POD_NAME": "metadata.name",
            "INFERFLEET_POD_NAMESPACE": "metadata.namespace",
        }


def test_every_pools_queue_is_declared_before_there_is_a_worker(
    manifests: Manifests, settings_of: ReadSettings
) -> None:
    declared = {}
    for job in manifests.all("Job"):
        assert containers(job)[0]["args"] == ["pool", "declare", "$(INFERFLEET_POOL)"]
        variables = manifests.variables(job)
        declared[variables["INFERFLEET_POOL"]] = variables["INFERFLEET_QUEUE_TYPE"]
    worked = {}
    for worker in manifests.workers:
        settings = settings_of(worker, manifests)
        worked[settings.pool] = settings.queue_type.value
    assert declared == worked


def test_ports_and_paths_are_those_of_the_worker(manifests: Manifests, settings_of: ReadSettings) -> None:
    for worker in manifests.workers:
        container = containers(worker)[0]
        assert container["ports"] == [
            {"name": "http", "containerPort": settings_of(worker, manifests).http_port}
        ]
        for probe, path in (
            ("startupProbe", READY_PATH),
            ("readinessProbe", READY_PATH),
            ("livenessProbe", LIVE_PATH),
        ):
            assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    for monitor in manifests.all("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert (endpoint["port"], endpoint["path"]) == ("http", METRICS_PATH)


# A worker's life


def test_a_slow_load_is_waited_for(manifests: Manifests) -> None:
    for worker in manifests.workers:
        startup = containers(worker)[0]["startupProbe"]
        patience_s = startup["periodSeconds"] * startup["failureThreshold"]
        assert patience_s >= LONG_LOAD_S
        assert startup["timeoutSeconds"] <= startup["periodSeconds"], (
            "probes that are not answered take no longer"
        )
        if worker["kind"] == "Deployment":
            assert worker["spec"]["progressDeadlineSeconds"] > patience_s


def test_a_drain_ends_before_the_pod_is_killed(manifests: Manifests, settings_of: ReadSettings) -> None:
    for worker in manifests.workers:
        drain_s = settings_of(worker, manifests).drain_timeout_s + SETTLE_GRACE_S + ENGINE_STOP_S
        assert pod(worker)["terminationGracePeriodSeconds"] > drain_s


def test_a_worker_is_told_to_drain_by_its_own_name(manifests: Manifests) -> None:
    for worker in manifests.workers:
        container = containers(worker)[0]
        assert container["lifecycle"] == {
            "preStop": {"exec": {"command": ["sh", "-c", 'inferfleet worker drain "$INFERFLEET_WORKER_ID"']}}
        }
        assert "INFERFLEET_WORKER_ID" in {variable["name"] for variable in container["env"]}


def test_nothing_stands_before_the_worker_in_its_container(manifests: Manifests) -> None:
    """A shell or an init would pass SIGTERM on to vLLM's own processes."""
    for worker in manifests.workers:
        assert not containers(worker)[0].keys() & {"command", "args"}
        assert not pod(worker).get("shareProcessNamespace")


def test_services_put_no_variables_among_the_settings(manifests: Manifests) -> None:
    assert all(pod(workload)["enableServiceLinks"] is False for workload in manifests.workloads)


# Scaling


def test_a_scaledobject_follows_the_queue_of_the_workers_it_scales(
    manifests: Manifests, settings_of: ReadSettings
) -> None:
    scaled = [
        each
        for each in manifests.all("ScaledObject", "HorizontalPodAutoscaler")
        if each["metadata"]["labels"].get("app.kubernetes.io/component") not in {"gateway", "agents"}
    ]
    targets = Counter(
        (each["spec"]["scaleTargetRef"]["kind"], each["spec"]["scaleTargetRef"]["name"]) for each in scaled
    )
    assert targets == Counter((worker["kind"], worker["metadata"]["name"]) for worker in manifests.workers)
    for each in scaled:
        target = each["spec"]["scaleTargetRef"]
        worker = manifests.one(target["kind"], target["name"])
        assert "replicas" not in worker["spec"], "an apply would undo what KEDA decided"
        settings = settings_of(worker, manifests)
        if each["kind"] == "HorizontalPodAutoscaler":
            (metric,) = each["spec"]["metrics"]
            assert metric["external"]["metric"]["selector"]["matchLabels"] == {"pool": settings.pool}
            continue
        queue, *_ = each["spec"]["triggers"]
        assert float(queue["metadata"]["value"]) >= settings.max_running, "workers would never be full"
        assert all(
            trigger["metadata"]["queueName"] == job_queue(settings.pool)
            for trigger in each["spec"]["triggers"]
            if trigger["type"] == "rabbitmq"
        )
        assert all(
            f'pool="{settings.pool}"' in trigger["metadata"]["query"]
            for trigger in each["spec"]["triggers"]
            if trigger["type"] == "prometheus"
        )


def test_running_jobs_count_and_a_metric_that_is_missing_is_an_error(manifests: Manifests) -> None:
    for each in manifests.all("ScaledObject"):
        assert each["spec"]["triggers"][0]["metadata"]["mode"] == "QueueLength", "it knows what is running"
        for trigger in each["spec"]["triggers"]:
            metadata = trigger["metadata"]
            match trigger["type"], metadata.get("mode"):
                case "rabbitmq", mode:
                    manifests.one("TriggerAuthentication", trigger["authenticationRef"]["name"])
                    assert metadata["protocol"] == "http"
                    per_worker = mode == "QueueLength"
                    assert ("excludeUnacknowledged" in metadata) is not per_worker
                    assert trigger["metricType"] == ("AverageValue" if per_worker else "Value")
                case "prometheus", _:
                    assert trigger["metricType"] == "AverageValue"
                    assert metadata["ignoreNullValues"] == "false"
                case other, _:
                    pytest.fail(f"a trigger {other} that no test looks at")


def test_nothing_of_the_scaling_is_left_to_a_default(manifests: Manifests) -> None:
    for each in manifests.all("ScaledObject"):
        spec = each["spec"]
        assert {"minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "fallback"} <= set(
            spec
        )
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        for direction in ("scaleUp", "scaleDown"):
            assert set(behavior[direction]) == {"stabilizationWindowSeconds", "selectPolicy", "policies"}


def test_inferfleet_autoscale_reads_every_scaledobject_without_a_remark(manifests: Manifests) -> None:
    for each in manifests.all("ScaledObject"):
        scaled = parse_scaled_object(each)
        assert scaled.min_replicas <= scaled.max_replicas


def test_inferfleet_autoscale_reads_the_file_itself() -> None:
    scaled = read_scaled_object(KEDA / "base/pool/scaledobject.yaml")
    assert scaled.triggers[0].target == 100
