"""What no schema can check of the manifests: that they agree with the code, and with each other."""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic_settings import BaseSettings
from tests.deploy.conftest import KEDA, Manifests, Object, containers, pod, pod_labels, render, selects

from inferfleet.local.autoscaler.scaled_object import parse_scaled_object, read_scaled_object
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.settings import EngineKind, ProducerSettings, WorkerSettings
from inferfleet.worker.http import LIVE_PATH, METRICS_PATH, READY_PATH
from inferfleet.worker.worker import SETTLE_GRACE_S

ENGINE_STOP_S = 10
"""What vLLM may take to end, at most, after the last job is settled."""

LONG_LOAD_S = 15 * 60
"""A large model from a slow volume."""

SECRETS = {
    "inferfleet-connections": {"amqp-url", "redis-url", "rabbitmq-http-url", "rabbitmq-tls"},
    "inferfleet-tls": {"ca.crt", "tls.crt", "tls.key"},
    "inferfleet-hugging-face": {"token"},
}
"""The Secrets that docs/deploy.md tells to create, with their keys."""

ReadSettings = Callable[[Object, Manifests], WorkerSettings]


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> ReadSettings:
    """The settings that a worker of these manifests would have."""

    def read(worker: Object, manifests: Manifests) -> WorkerSettings:
        for name, value in manifests.variables(worker).items():
            monkeypatch.setenv(name, value)
        return WorkerSettings()

    return read


def example_connections() -> dict[str, str]:
    lines = (KEDA / "base/fleet/connections.example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def fields_of(*settings: type[BaseSettings]) -> set[str]:
    return {f"INFERFLEET_{name.upper()}" for each in settings for name in each.model_fields}


# Names that the code reads


def test_every_variable_is_a_setting(manifests: Manifests) -> None:
    known = fields_of(WorkerSettings, ProducerSettings) | {"INFERFLEET_MANAGEMENT_URL"}
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
        assert settings.engine is (
            EngineKind.SIMULATED if manifests.name == "overlays/dev" else EngineKind.VLLM
        )
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
        if worker["kind"] == "Deployment":
            assert worker["spec"]["progressDeadlineSeconds"] > patience_s


def test_a_drain_ends_before_the_pod_is_killed(manifests: Manifests, settings_of: ReadSettings) -> None:
    for worker in manifests.workers:
        drain_s = settings_of(worker, manifests).drain_timeout_s + SETTLE_GRACE_S + ENGINE_STOP_S
        assert pod(worker)["terminationGracePeriodSeconds"] > drain_s


def test_only_one_order_to_stop_reaches_a_worker_and_nothing_stands_before_it(manifests: Manifests) -> None:
    """A second one would cut the drain short; a shell or an init would pass the first one on to vLLM."""
    for worker in manifests.workers:
        container = containers(worker)[0]
        assert not container.keys() & {"lifecycle", "command", "args"}
        assert not pod(worker).get("shareProcessNamespace")


def test_services_put_no_variables_among_the_settings(manifests: Manifests) -> None:
    assert all(pod(workload)["enableServiceLinks"] is False for workload in manifests.workloads)


# Scaling


def test_a_scaledobject_follows_the_queue_of_the_workers_it_scales(
    manifests: Manifests, settings_of: ReadSettings
) -> None:
    scaled = manifests.all("ScaledObject")
    targets = Counter(
        (each["spec"]["scaleTargetRef"]["kind"], each["spec"]["scaleTargetRef"]["name"]) for each in scaled
    )
    assert targets == Counter((worker["kind"], worker["metadata"]["name"]) for worker in manifests.workers)
    for each in scaled:
        target = each["spec"]["scaleTargetRef"]
        worker = manifests.one(target["kind"], target["name"])
        assert "replicas" not in worker["spec"], "an apply would undo what KEDA decided"
        queue, *_ = each["spec"]["triggers"]
        settings = settings_of(worker, manifests)
        assert queue["metadata"]["queueName"] == job_queue(settings.pool)
        assert float(queue["metadata"]["value"]) >= settings.max_running, "workers would never be full"
        assert all(
            f'pool="{settings.pool}"' in trigger["metadata"]["query"]
            for trigger in each["spec"]["triggers"]
            if trigger["type"] == "prometheus"
        )


def test_running_jobs_count_and_a_metric_that_is_missing_is_an_error(manifests: Manifests) -> None:
    for each in manifests.all("ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            # KEDA's fallback is for this kind alone.
            assert trigger["metricType"] == "AverageValue"
            match trigger["type"]:
                case "rabbitmq":
                    manifests.one("TriggerAuthentication", trigger["authenticationRef"]["name"])
                    assert trigger["metadata"]["protocol"] == "http"
                    assert "excludeUnacknowledged" not in trigger["metadata"]
                case "prometheus":
                    assert trigger["metadata"]["ignoreNullValues"] == "false"
                case other:
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


# References


def test_what_a_pod_refers_to_is_there(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        spec = pod(workload)
        volumes = spec.get("volumes", [])
        for volume in volumes:
            if "persistentVolumeClaim" in volume:
                manifests.one("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
            if "configMap" in volume:
                manifests.one("ConfigMap", volume["configMap"]["name"])
        if "serviceAccountName" in spec:
            manifests.one("ServiceAccount", spec["serviceAccountName"])
        claimed = workload["spec"].get("volumeClaimTemplates", [])
        names = {volume["name"] for volume in volumes} | {claim["metadata"]["name"] for claim in claimed}
        mounts = [mount for each in containers(workload) for mount in each.get("volumeMounts", [])]
        assert {mount["name"] for mount in mounts} == names


def test_every_secret_and_key_is_one_of_those_that_the_docs_name(manifests: Manifests) -> None:
    used: dict[str, set[str]] = {}
    for reference in found_in(manifests.objects, "secretKeyRef"):
        used.setdefault(reference["name"], set()).add(reference["key"])
    for references in found_in(manifests.objects, "secretTargetRef"):
        for reference in references:
            used.setdefault(reference["name"], set()).add(reference["key"])
    for volume in found_in(manifests.objects, "secret"):
        used.setdefault(volume["secretName"], set())
    assert used["inferfleet-connections"] >= {"amqp-url", "redis-url", "rabbitmq-http-url"}
    for name, keys in used.items():
        assert keys <= SECRETS[name]
    docs = (KEDA.parents[1] / "docs/deploy.md").read_text()
    assert all(name in docs for name in SECRETS)


def test_the_example_of_the_secret_has_values_that_the_code_and_keda_take() -> None:
    example = example_connections()
    assert set(example) == {"amqp-url", "redis-url", "rabbitmq-http-url"}
    WorkerSettings(amqp_url=example["amqp-url"], redis_url=example["redis-url"])
    management = urlsplit(example["rabbitmq-http-url"])
    assert (management.scheme, management.port, management.path) == ("http", 15672, "/")


def test_selectors_choose_the_pods_that_are_meant(manifests: Manifests) -> None:
    for workload in manifests.all("Deployment", "StatefulSet"):
        assert chosen_by(workload["spec"]["selector"]["matchLabels"], manifests) == [workload]
    for worker in manifests.workers:
        (spread,) = pod(worker)["topologySpreadConstraints"]
        assert chosen_by(spread["labelSelector"]["matchLabels"], manifests) == [worker]
    guarded = [
        chosen_by(budget["spec"]["selector"]["matchLabels"], manifests)
        for budget in manifests.all("PodDisruptionBudget")
    ]
    assert sorted(guarded, key=str) == sorted(([worker] for worker in manifests.workers), key=str)
    service = manifests.one("Service", "inferfleet-workers")
    assert chosen_by(service["spec"]["selector"], manifests) == manifests.workers


def test_every_pod_with_metrics_is_scraped_by_one_monitor(manifests: Manifests) -> None:
    monitors = manifests.all("PodMonitor")
    for workload in manifests.ours if monitors else []:
        scraping = [each for each in monitors if selects(each["spec"]["selector"]["matchLabels"], workload)]
        assert len(scraping) == ("ports" in containers(workload)[0])


def test_all_pods_of_the_fleet_and_no_others_have_a_network_policy(manifests: Manifests) -> None:
    policy = manifests.one("NetworkPolicy", "inferfleet")
    assert chosen_by(policy["spec"]["podSelector"]["matchLabels"], manifests) == manifests.ours
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_the_network_policy_lets_workers_reach_what_they_need(manifests: Manifests) -> None:
    allowed = {
        port["port"]
        for rule in manifests.one("NetworkPolicy", "inferfleet")["spec"]["egress"]
        for port in rule["ports"]
    }
    example = example_connections()
    needed = {urlsplit(example[key]).port for key in ("amqp-url", "redis-url")}
    assert allowed == needed | {5671, 6380, 443, 6443, 53}


# Pods that ask for little


def test_pods_are_as_restricted_as_their_namespace_demands(manifests: Manifests) -> None:
    labels = manifests.one("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in manifests.workloads:
        security = pod(workload)["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(workload):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


def test_our_containers_run_as_the_images_user_and_write_nowhere_but_in_volumes(manifests: Manifests) -> None:
    assert "--uid 10001" in (KEDA.parents[1] / "Dockerfile").read_text()
    for workload in manifests.ours:
        assert pod(workload)["securityContext"]["runAsUser"] == 10001
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in containers(workload))


def test_images_are_pinned_to_this_version(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        for container in containers(workload):
            name, _, tag = container["image"].partition(":")
            assert tag
            assert tag != "latest"
            if name.startswith("inferfleet-"):
                assert tag.split("-")[0] == version("inferfleet")


def test_a_worker_may_patch_pods_and_nothing_else(manifests: Manifests) -> None:
    assert not manifests.all("ClusterRole", "ClusterRoleBinding")
    rules = [rule for role in manifests.all("Role") for rule in role["rules"]]
    if manifests.name == "overlays/statefulset":
        assert rules == []
        return
    assert rules == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]
    (binding,) = manifests.all("RoleBinding")
    (subject,) = binding["subjects"]
    namespace = manifests.one("Namespace")["metadata"]["name"]
    assert (subject["name"], subject["namespace"]) == ("inferfleet-worker", namespace)
    for workload in manifests.workloads:
        if workload not in manifests.workers:
            assert pod(workload)["automountServiceAccountToken"] is False


def test_all_is_in_one_namespace_and_nothing_is_there_twice(manifests: Manifests) -> None:
    names = Counter((thing["kind"], thing["metadata"]["name"]) for thing in manifests)
    assert set(names.values()) == {1}
    for thing in manifests:
        if thing["kind"] != "Namespace":
            assert thing["metadata"]["namespace"] == manifests.one("Namespace")["metadata"]["name"]


def test_every_worker_asks_for_one_gpu_or_one_share(manifests: Manifests) -> None:
    for worker in manifests.workers:
        limits = containers(worker)[0]["resources"]["limits"]
        if manifests.name == "overlays/dev":
            assert limits.keys() == {"memory"}
            continue
        assert [amount for name, amount in limits.items() if name.startswith("nvidia.com/")] == [1]
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod(worker)[
            "tolerations"
        ]
        assert pod(worker)["affinity"]["nodeAffinity"]


def test_a_worker_reads_its_model_from_the_volume_that_was_warmed(manifests: Manifests) -> None:
    for worker in manifests.workers:
        if manifests.name == "overlays/dev":
            assert "initContainers" not in pod(worker)
            continue
        (warming,) = pod(worker)["initContainers"]
        container = containers(worker)[0]
        variables = manifests.variables(worker)
        assert variables["HF_HUB_OFFLINE"] == "1"
        home = variables["HF_HOME"]
        assert {"name": "HF_HOME", "value": home} in warming["env"]
        read = next(mount for mount in container["volumeMounts"] if mount["mountPath"] == home)
        written = next(mount for mount in warming["volumeMounts"] if mount["mountPath"] == home)
        assert read["name"] == written["name"]
        assert warming["image"] == container["image"]
        script = warming["command"][-1].rpartition("/")[2]
        assert (
            script
            in manifests.one(
                "ConfigMap",
                next(
                    volume["configMap"]["name"] for volume in pod(worker)["volumes"] if "configMap" in volume
                ),
            )["data"]
        )


# What makes each overlay what it is


def scaled(name: str) -> dict[str, Any]:
    return render(f"overlays/{name}").one("ScaledObject")["spec"]


def test_scale_to_zero_reaches_zero_and_keep_one_warm_does_not() -> None:
    assert scaled("scale-to-zero")["minReplicaCount"] == 0
    assert scaled("keep-one-warm")["minReplicaCount"] == 1


def test_each_mig_pool_has_slices_of_one_size() -> None:
    slices = {
        pod_labels(worker)["inferfleet/pool"]: set(containers(worker)[0]["resources"]["limits"]) - {"memory"}
        for worker in render("overlays/mig").workers
    }
    assert slices == {"small": {"nvidia.com/mig-1g.10gb"}, "large": {"nvidia.com/mig-3g.40gb"}}


@pytest.mark.parametrize("name", ["time-slicing", "mps"])
def test_workers_that_share_a_card_fit_on_it(name: str, settings_of: ReadSettings) -> None:
    manifests = render(f"overlays/{name}")
    (worker,) = manifests.workers
    plugin = yaml.safe_load((KEDA / f"overlays/{name}/device-plugin.yaml").read_text())
    (sharing,) = plugin["sharing"].values()
    (resource,) = sharing["resources"]
    assert sharing["renameByDefault"] is True
    assert containers(worker)[0]["resources"]["limits"]["nvidia.com/gpu.shared"] == 1
    share = settings_of(worker, manifests).engine_args["gpu_memory_utilization"]
    assert resource["replicas"] * share < 1


def test_mps_workers_see_the_shared_memory_of_its_daemon() -> None:
    (worker,) = render("overlays/mps").workers
    assert "/dev/shm" not in {mount["mountPath"] for mount in containers(worker)[0]["volumeMounts"]}


def test_statefulset_workers_have_lasting_names() -> None:
    manifests = render("overlays/statefulset")
    (worker,) = manifests.workers
    assert worker["kind"] == "StatefulSet"
    assert manifests.one("Service", worker["spec"]["serviceName"])["spec"]["clusterIP"] == "None"
    assert not manifests.all("Deployment")


def test_two_pools_share_the_fleet_and_nothing_else() -> None:
    manifests = render("overlays/multi-pool")
    assert [each["metadata"]["name"] for each in manifests.all("ScaledObject")] == [
        "inferfleet-worker-chat",
        "inferfleet-worker-embed",
    ]
    models = {manifests.variables(worker)["INFERFLEET_MODEL"] for worker in manifests.workers}
    assert len(models) == 2
    assert len(manifests.all("TriggerAuthentication")) == len(manifests.all("PersistentVolumeClaim")) == 1


def test_in_a_mesh_the_proxy_outlives_the_drain_and_leaves_probes_alone() -> None:
    manifests = render("overlays/service-mesh")
    for workload in manifests.ours:
        annotations = workload["spec"]["template"]["metadata"]["annotations"]
        assert annotations["sidecar.istio.io/nativeSidecar"] == "true"
        assert annotations["config.beta.linkerd.io/proxy-enable-native-sidecar"] == "true"
        port = str(WorkerSettings().http_port)
        assert annotations["traffic.sidecar.istio.io/excludeInboundPorts"] == port
        assert annotations["config.linkerd.io/skip-inbound-ports"] == port


def test_tls_reaches_keda_and_every_pod() -> None:
    manifests = render("overlays/tls")
    parameters = manifests.one("TriggerAuthentication")["spec"]["secretTargetRef"]
    assert [each["parameter"] for each in parameters] == ["host", "tls", "ca", "cert", "key"]
    for workload in manifests.ours:
        mounts = containers(workload)[0]["volumeMounts"]
        assert {"name": "tls", "mountPath": "/etc/inferfleet/tls", "readOnly": True} in mounts


def test_dev_needs_nothing_but_a_cluster_with_keda() -> None:
    manifests = render("overlays/dev")
    assert not manifests.all("PodMonitor", "PersistentVolumeClaim")
    secret = manifests.one("Secret", "inferfleet-connections")["data"]
    assert set(secret) == set(example_connections())
    for key in secret:
        url = urlsplit(b64decode(secret[key]).decode())
        assert url.hostname is not None
        service = manifests.one("Service", url.hostname.split(".")[0])
        assert url.port in {port["port"] for port in service["spec"]["ports"]}
        (server,) = [o for o in manifests.workloads if selects(service["spec"]["selector"], o)]
        assert url.port in {port["containerPort"] for port in containers(server)[0]["ports"]}


def chosen_by(labels: dict[str, str], manifests: Manifests) -> list[Object]:
    return [workload for workload in manifests.workloads if selects(labels, workload)]


def found_in(thing: Any, key: str) -> list[Any]:
    """Every value of a key, at any depth."""
    if isinstance(thing, dict):
        own = [thing[key]] if key in thing and not isinstance(thing[key], str) else []
        return own + [found for value in thing.values() for found in found_in(value, key)]
    if isinstance(thing, list):
        return [found for value in thing for found in found_in(value, key)]
    return []
