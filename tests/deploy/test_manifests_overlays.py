"""What makes each overlay what it is."""

from __future__ import annotations

import re
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from tests.deploy.conftest import (
    KEDA,
    OVERLAYS,
    SECRETS,
    ReadSettings,
    chosen_by,
    containers,
    engine_of,
    example_connections,
    found_in,
    pod,
    pod_labels,
    render,
    selects,
)
from tests.deploy.pod_security import violations

from inferfleet.exporter.metrics import FleetCollector
from inferfleet.exporter.server import LIVE_PATH as EXPORTER_LIVE_PATH
from inferfleet.exporter.server import METRICS_PATH as EXPORTER_METRICS_PATH
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.gateway.app import LIVE_PATH as GATEWAY_LIVE_PATH
from inferfleet.gateway.app import READY_PATH as GATEWAY_READY_PATH
from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.server import LAST_WORDS_S
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.gateway.waiting import COMMENT_INTERVAL_S
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.topology import Topology, TopologyKind, topology_of
from inferfleet.worker.engines.openai.engine import OpenaiEngine


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


def test_a_canary_pool_has_its_own_queue_and_scaled_object_and_a_gateway_controls_the_rollout() -> None:
    manifests = render("overlays/canary")
    scaled = {
        each["metadata"]["name"]: each["spec"]["triggers"][0]["metadata"]["queueName"]
        for each in manifests.all("ScaledObject")
    }
    assert scaled == {
        "inferfleet-worker-chat": job_queue("chat"),
        "inferfleet-worker-chat-v2": job_queue("chat-v2"),
    }
    pools = {manifests.variables(worker)["INFERFLEET_POOL"] for worker in manifests.workers}
    assert pools == {"chat", "chat-v2"}
    assert manifests.one("Deployment", "inferfleet-gateway")
    # A canary that loads its model while jobs wait is found to do worse.
    assert manifests.one("ScaledObject", "inferfleet-worker-chat-v2")["spec"]["minReplicaCount"] == 1


def test_a_worker_reaches_vllm_in_its_own_pod_and_drains_before_it_ends(settings_of: ReadSettings) -> None:
    manifests = render("overlays/vllm-sidecar")
    (worker,) = manifests.workers
    server, settings = engine_of(worker), settings_of(worker, manifests)
    OpenaiEngine.from_settings(settings)
    assert settings.engine == "openai"
    assert server["command"] == ["vllm", "serve", "$(INFERFLEET_MODEL)"]
    assert server["envFrom"] == [containers(worker)[0]["envFrom"][1]], "else the model has no name"
    options = dict(each.removeprefix("--").split("=") for each in server["args"])
    assert urlsplit(settings.base_url).netloc == f"{options['host']}:{options['port']}"
    assert settings.max_running <= int(options["max-num-seqs"])
    # Such an init container ends after the containers, and starts before them. The warming comes before it.
    assert server["restartPolicy"] == "Always"
    assert pod(worker)["initContainers"][-1] == server


def test_the_exporter_answers_where_it_is_asked() -> None:
    manifests = render("overlays/slo")
    exporter = manifests.one("Deployment", "inferfleet-exporter")
    (container,) = containers(exporter)
    assert "command" not in container, "the image's entry point is the command line"
    assert container["args"] == ["exporter"]
    assert container["image"].startswith("inferfleet-producer:")
    assert container["ports"] == [{"name": "http", "containerPort": ExporterSettings().http_port}]
    assert container["livenessProbe"]["httpGet"] == {"path": EXPORTER_LIVE_PATH, "port": "http"}
    (endpoint,) = manifests.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", EXPORTER_METRICS_PATH)
    assert exporter["spec"]["replicas"] == 1


def test_the_gateway_answers_where_it_is_asked_and_has_time_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = render("overlays/gateway")
    gateway = manifests.one("Deployment", "inferfleet-gateway")
    (container,) = containers(gateway)
    for name, value in manifests.variables(gateway).items():
        monkeypatch.setenv(name, value)
    settings = GatewaySettings()
    assert container["image"].startswith("inferfleet-producer:")
    assert container["args"] == ["gateway"]
    assert settings.http_host == "0.0.0.0"
    assert settings.metrics_host == "0.0.0.0"
    # Both policies, and a PodMonitor, go by these names.
    assert container["ports"] == [
        {"name": "openai", "containerPort": settings.http_port},
        {"name": "http", "containerPort": settings.metrics_port},
    ]
    assert container["readinessProbe"]["httpGet"] == {"path": GATEWAY_READY_PATH, "port": "openai"}
    assert container["livenessProbe"]["httpGet"] == {"path": GATEWAY_LIVE_PATH, "port": "openai"}
    pause_s = float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    grace_s = pod(gateway)["terminationGracePeriodSeconds"]
    assert grace_s > pause_s + settings.drain_timeout_s + LAST_WORDS_S
    service = manifests.one("Service", "inferfleet-gateway")
    budget = manifests.one("PodDisruptionBudget", "inferfleet-gateway")
    policy = manifests.one("NetworkPolicy", "inferfleet-gateway")
    for selector in (
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
        policy["spec"]["podSelector"]["matchLabels"],
    ):
        assert chosen_by(selector, manifests) == [gateway]
    scaler = manifests.one("HorizontalPodAutoscaler", "inferfleet-gateway")
    assert scaler["spec"]["scaleTargetRef"]["name"] == gateway["metadata"]["name"]
    assert "replicas" not in gateway["spec"]


@pytest.mark.parametrize("name", ["gateway-ingress", "gateway-route"])
def test_whoever_comes_from_outside_needs_a_key_and_waits_without_a_limit(name: str) -> None:
    manifests = render(f"overlays/{name}")
    gateway = manifests.one("Deployment", "inferfleet-gateway")
    assert manifests.variables(gateway)["INFERFLEET_ALLOW_ANONYMOUS"] == "false"
    (service_port,) = manifests.one("Service", "inferfleet-gateway")["spec"]["ports"]
    (rule,) = manifests.one("NetworkPolicy", "inferfleet-gateway")["spec"]["ingress"]
    *_, outside = rule["from"]
    namespace = outside["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    if name == "gateway-ingress":
        ingress = manifests.one("Ingress")
        options = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
        assert int(options["proxy-body-size"].removesuffix("m")) * 2**20 > GatewaySettings().max_file_bytes
        assert (options["proxy-buffering"], options["proxy-request-buffering"]) == ("off", "off")
        assert int(options["proxy-read-timeout"]) > COMMENT_INTERVAL_S
        (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
        assert path["backend"]["service"] == {
            "name": "inferfleet-gateway",
            "port": {"name": service_port["name"]},
        }
        prefix = path["path"]
        assert ingress["spec"]["tls"][0]["hosts"] == [ingress["spec"]["rules"][0]["host"]]
    else:
        route = manifests.one("HTTPRoute")["spec"]
        (through,) = route["rules"]
        assert through["timeouts"] == {"request": "0s", "backendRequest": "0s"}
        assert through["backendRefs"] == [{"name": "inferfleet-gateway", "port": service_port["port"]}]
        assert [parent["namespace"] for parent in route["parentRefs"]] == [namespace]
        prefix = through["matches"][0]["path"]["value"]
    assert all(path.startswith(f"{prefix}/") for path in ENDPOINTS)


@pytest.mark.parametrize("component", ["gateway-ingress", "gateway-route"])
def test_nobody_comes_from_outside_to_a_gateway_that_asks_for_no_key(component: str, tmp_path: Path) -> None:
    shutil.copytree(KEDA, tmp_path / "keda")
    folder = tmp_path / "keda/overlays/mine"
    folder.mkdir()
    kustomization = {"resources": ["../gateway"], "components": [f"../../components/{component}"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    manifests = render(folder)
    variables = manifests.variables(manifests.one("Deployment", "inferfleet-gateway"))
    given = {
        name: variables[f"INFERFLEET_{name}".upper()]
        for name in ("http_host", "metrics_host", "metrics_port", "allow_anonymous")
    }
    with pytest.raises(ValidationError, match="INFERFLEET_API_KEYS_FILE"):
        GatewaySettings.model_validate(given)


def test_gateways_scale_by_a_metric_that_they_have() -> None:
    adapter = yaml.safe_load((KEDA / "components/gateway-streams/prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    cpu, streams = render("overlays/gateway-streams").one("HorizontalPodAutoscaler")["spec"]["metrics"]
    metric = streams["pods"]["metric"]["name"]
    assert cpu["resource"]["name"] == "cpu"
    assert re.findall(r"\w+", rule["seriesQuery"])[0] == metric
    assert f"# TYPE {metric} gauge" in GatewayMetrics(CollectorRegistry()).exposition().decode()
    assert 2 * int(streams["pods"]["target"]["averageValue"]) <= GatewaySettings().max_open_requests


def test_the_slo_triggers_ask_for_metrics_that_the_exporter_has() -> None:
    exported = {family.name for family in FleetCollector(lambda: None, stale_after_s=1).collect()}
    queries = [
        trigger["metadata"]["query"]
        for trigger in scaled("slo")["triggers"]
        if trigger["type"] == "prometheus"
    ]
    assert len(queries) == 2
    for query in queries:
        asked = set(re.findall(r"inferfleet_\w+", query))
        assert asked
        assert asked <= exported
        assert set(re.findall(r'phase="(\w+)"', query)) <= set(WorkerPhase)


def test_the_plain_hpa_scales_by_the_numbers_of_the_base() -> None:
    manifests = render("overlays/hpa")
    hpa = manifests.one("HorizontalPodAutoscaler")["spec"]
    base = render("base").one("ScaledObject")["spec"]
    assert not manifests.all("ScaledObject", "TriggerAuthentication")
    assert hpa["scaleTargetRef"] == {"apiVersion": "apps/v1", **base["scaleTargetRef"]}
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (base["minReplicaCount"], base["maxReplicaCount"])
    assert hpa["behavior"] == base["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (metric,) = hpa["metrics"]
    assert metric["external"]["target"] == {
        "type": "AverageValue",
        "averageValue": base["triggers"][0]["metadata"]["value"],
    }


def test_the_adapters_metric_is_made_of_the_exporters() -> None:
    adapter = yaml.safe_load((KEDA / "overlays/hpa/prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["external"]
    (metric,) = render("overlays/hpa").one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert rule["name"]["as"] == metric["external"]["metric"]["name"]
    asked = set(re.findall(r"inferfleet_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
    assert asked == {"inferfleet_queue_ready", "inferfleet_queue_unacked"}
    assert asked <= {family.name for family in FleetCollector(lambda: None, stale_after_s=1).collect()}


def test_keda_estimates_the_wait_of_a_pool_that_is_never_at_zero() -> None:
    spec = scaled("consumption-time")
    assert spec["minReplicaCount"] == 1, "KEDA 2.20.2 would not let it go to zero"
    length, waiting = spec["triggers"]
    assert waiting["metadata"]["mode"] == "ExpectedQueueConsumptionTime"
    assert waiting["metadata"]["queueName"] == length["metadata"]["queueName"]


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


def test_with_secret_files_no_variable_holds_a_password() -> None:
    manifests = render("overlays/secret-files")
    for workload in manifests.ours:
        asked = found_in(containers(workload)[0], "secretKeyRef")
        assert [each["name"] for each in asked if each["name"] == "inferfleet-connections"] == []


@pytest.mark.parametrize("components", [("tls", "secret-files"), ("secret-files", "tls")])
@pytest.mark.parametrize("name", [name for name in OVERLAYS if name not in {"tls", "secret-files"}])
def test_components_add_to_every_overlay(name: str, components: tuple[str, str], tmp_path: Path) -> None:
    shutil.copytree(KEDA, tmp_path / "keda")
    folder = tmp_path / "keda/overlays/mine"
    folder.mkdir()
    kustomization = {
        "resources": [f"../{name}"],
        "components": [f"../../components/{component}" for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    manifests = render(folder)
    for workload in manifests.ours:
        container = containers(workload)[0]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume.get("secret") for volume in pod(workload)["volumes"]}
        assert volumes[mounted["/etc/inferfleet/tls"]]["secretName"] == "inferfleet-tls"
        assert volumes[mounted["/etc/inferfleet/connections"]]["secretName"] == "inferfleet-connections"
        urls = {
            key: value
            for key, value in manifests.variables(workload).items()
            if key.endswith("_URL") and key != "INFERFLEET_BASE_URL"
        }
        assert urls
        for url in urls.values():
            assert Path(urlsplit(url).path).parent == Path("/etc/inferfleet/connections")
            assert Path(url).name in SECRETS["inferfleet-connections"]


def test_the_urls_of_the_tls_component_name_files_that_are_mounted() -> None:
    text = (KEDA / "components/tls/kustomization.yaml").read_text()
    urls = dict(line.removeprefix("#   ").split("=", 1) for line in text.splitlines() if "#   " in line)
    assert set(urls) == SECRETS["inferfleet-connections"]
    named = set(re.findall(r"=(/[^&\s]+)", urls["amqp-url"] + " " + urls["redis-url"]))
    assert named == {f"/etc/inferfleet/tls/{key}" for key in SECRETS["inferfleet-tls"]}
    assert urlsplit(urls["rabbitmq-http-url"]).query == "", "KEDA would append its path to it"
    policies = [
        render("overlays/slo").one("NetworkPolicy", name) for name in ("inferfleet", "inferfleet-exporter")
    ]
    allowed = {each["port"] for ports in found_in(policies, "ports") for each in ports}
    assert {urlsplit(urls[key]).port for key in urls if key.endswith("-url")} <= allowed


def test_the_fleet_reaches_the_replicated_rabbitmq_by_what_its_operator_makes() -> None:
    manifests = render("overlays/replicated")
    rabbitmq = manifests.one("RabbitmqCluster")
    name, namespace = rabbitmq["metadata"]["name"], rabbitmq["metadata"]["namespace"]
    replicas = rabbitmq["spec"]["replicas"]
    assert replicas == 3
    # On a new cluster a worker may declare the queue when there is one node only.
    settings = dict(
        line.split(" = ") for line in rabbitmq["spec"]["rabbitmq"]["additionalConfig"].splitlines()
    )
    reconciliation = "quorum_queue.continuous_membership_reconciliation"
    assert settings[f"{reconciliation}.enabled"] == "true"
    assert settings[f"{reconciliation}.target_group_size"] == str(replicas)
    for workload in manifests.ours:
        assert manifests.variables(workload)["INFERFLEET_QUEUE_TYPE"] == "quorum"
        (url,) = [each for each in containers(workload)[0]["env"] if each["name"] == "INFERFLEET_AMQP_URL"]
        assert url["valueFrom"] == {
            "secretKeyRef": {"name": f"{name}-default-user", "key": "connection_string"}
        }
    (trigger,) = manifests.one("ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["host"] == f"http://{name}.{namespace}.svc:15672/"
    credentials = manifests.one("TriggerAuthentication")["spec"]["secretTargetRef"]
    assert {(each["parameter"], each["name"]) for each in credentials} == {
        ("username", f"{name}-default-user"),
        ("password", f"{name}-default-user"),
    }
    budget = manifests.one("PodDisruptionBudget", name)["spec"]
    assert budget["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}


def test_workers_reach_the_replicated_redis_by_what_its_operator_makes(settings_of: ReadSettings) -> None:
    manifests = render("overlays/replicated")
    redis, (worker,) = manifests.one("RedisReplication"), manifests.workers
    names = [each["name"] for each in containers(worker)[0]["env"]]
    # Kubernetes only expands variables that come earlier.
    assert names.index("REDIS_PASSWORD") < names.index("INFERFLEET_REDIS_URL")
    (password,) = [each for each in containers(worker)[0]["env"] if each["name"] == "REDIS_PASSWORD"]
    assert password["valueFrom"]["secretKeyRef"] == redis["spec"]["kubernetesConfig"]["redisSecret"]
    url = settings_of(worker, manifests).redis_url.replace("$(REDIS_PASSWORD)", "secret")
    name = redis["metadata"]["name"]
    assert topology_of(url) == Topology(
        TopologyKind.SENTINEL, urls=(f"redis://:secret@{name}-s-hl:26379/0",), service="mymaster"
    )
    assert "redisSecret" not in redis["spec"]["sentinel"], "it would need a login in the URL"
    config = manifests.one("ConfigMap", redis["spec"]["redisConfig"]["additionalRedisConfig"])["data"]
    assert "maxmemory-policy noeviction" in config["redis-additional.conf"]


@pytest.mark.parametrize("sentinels", [False, True])
def test_a_restricted_namespace_admits_the_replicated_redis(sentinels: bool) -> None:
    spec = render("overlays/replicated").one("RedisReplication")["spec"]
    given = spec["sentinel"] if sentinels else spec
    container = {"name": "redis", "securityContext": given["securityContext"]}
    assert violations({"securityContext": given["podSecurityContext"], "containers": [container]}) == []


def test_dev_needs_nothing_but_a_cluster_with_keda() -> None:
    manifests = render("overlays/dev")
    assert not manifests.all("PersistentVolumeClaim")
    secret = manifests.one("Secret", "inferfleet-connections")["data"]
    assert set(secret) == set(example_connections())
    for key in secret:
        url = urlsplit(b64decode(secret[key]).decode())
        assert url.hostname is not None
        service = manifests.one("Service", url.hostname.split(".")[0])
        assert url.port in {port["port"] for port in service["spec"]["ports"]}
        (server,) = [o for o in manifests.workloads if selects(service["spec"]["selector"], o)]
        assert url.port in {port["containerPort"] for port in containers(server)[0]["ports"]}
