"""What one object of the manifests says of another: names, keys, selectors, ports."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.deploy.conftest import (
    KEDA,
    SECRETS,
    Manifests,
    chosen_by,
    containers,
    example_connections,
    found_in,
    pod,
)

from inferfleet.schemas.settings import WorkerSettings

OPERATORS = {
    "overlays/slo": {"keda.sh", "monitoring.coreos.com"},
    "overlays/replicated": {"keda.sh", "rabbitmq.com", "redis.redis.opstreelabs.in"},
    "overlays/hpa": {"monitoring.coreos.com"},
    "overlays/gateway-streams": {"keda.sh", "monitoring.coreos.com"},
}
"""The operators' API groups, for overlays that say that they need others than KEDA."""


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
    for workload in manifests.ours:
        for url in manifests.variables(workload).values():
            if url.startswith("file:///etc/inferfleet/connections/"):
                used["inferfleet-connections"].add(url.rpartition("/")[2])
    if manifests.name != "overlays/replicated":
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
        if "inferfleet/pool" in budget["metadata"].get("labels", {})
    ]
    assert sorted(guarded, key=str) == sorted(([worker] for worker in manifests.workers), key=str)
    service = manifests.one("Service", "inferfleet-workers")
    assert chosen_by(service["spec"]["selector"], manifests) == manifests.workers


def test_monitors_scrape_every_pod_with_metrics_once(manifests: Manifests) -> None:
    monitors = manifests.all("PodMonitor")
    for monitor in monitors:
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        scraped = chosen_by(monitor["spec"]["selector"]["matchLabels"], manifests)
        with_metrics = [
            workload
            for workload in manifests.ours
            if endpoint["port"] in {port["name"] for port in containers(workload)[0].get("ports", [])}
        ]
        assert all(workload in scraped for workload in with_metrics)
    assert len(monitors) <= 1


def test_only_overlays_that_need_an_operator_use_its_kinds(manifests: Manifests) -> None:
    """Where an operator is missing, Kubernetes refuses its kinds and the apply ends with an error."""
    groups = {thing["apiVersion"].rpartition("/")[0] for thing in manifests}
    theirs = {group for group in groups if "." in group and not group.endswith(".k8s.io")}
    assert theirs == OPERATORS.get(manifests.name, {"keda.sh"})


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
    assert allowed == needed | {5671, 6380, 26379, 443, 6443, 53}
