"""docs/deploy.md and the manifests say the same."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import yaml
from tests.deploy.conftest import (
    COMPONENTS,
    DOCS,
    KEDA,
    OVERLAYS,
    ROOT,
    Manifests,
    chosen_by,
    containers,
    documented_overlay,
    found_in,
    pod,
    render,
    selects,
)

from inferfleet.gateway.settings import GatewaySettings
from inferfleet.local.autoscaler.scaled_object import read_scaled_object
from inferfleet.schemas.names import job_queues
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.worker import SETTLE_GRACE_S

BUILT = set(re.findall(r"-t (registry\S+)", DOCS))
"""The images that docs/deploy.md tells to build."""


def test_every_overlay_is_explained() -> None:
    assert {name for name in OVERLAYS if f"`{name}`" not in DOCS} == set()


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"deploy/keda[\w./-]*\w", DOCS))
    missing = {name for name in named if not (ROOT / name).exists()}
    assert {name for name in missing if not name.startswith("deploy/keda/overlays/mine")} == set()


def test_the_overlay_of_your_own_renders(mine: Callable[[str], Manifests]) -> None:
    own, _ = documented_overlay()
    images = {container["image"] for workload in mine(own).workloads for container in containers(workload)}
    assert images == BUILT


@pytest.mark.parametrize("name", sorted(set(OVERLAYS) - {"dev"}))
def test_an_overlay_of_your_own_on_any_of_ours_needs_no_other_image_than_those_that_were_built(
    name: str, mine: Callable[[str], Manifests]
) -> None:
    own, _ = documented_overlay()
    images = {
        container["image"]
        for workload in mine(own.replace("../scale-to-zero", f"../{name}")).ours
        for container in containers(workload)
    }
    assert images == BUILT


def test_what_it_says_to_add_for_your_cluster_takes_effect(own_overlay: Manifests) -> None:
    (worker,) = own_overlay.workers
    assert pod(worker)["runtimeClassName"] == "nvidia"
    assert own_overlay.variables(worker)["INFERFLEET_WARM_WAIT_S"] == "5"
    (trigger,) = own_overlay.one("ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["queueName"] == job_queues(own_overlay.variables(worker)["INFERFLEET_POOL"])
    assert trigger["metadata"]["useRegex"] == "true"
    assert pod(worker)["priorityClassName"] == own_overlay.one("PriorityClass")["metadata"]["name"]
    assert worker["spec"]["template"]["metadata"]["annotations"] == {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    assert own_overlay.one("PersistentVolumeClaim")["spec"]["storageClassName"] == "shared-files"
    assert all(pod(workload)["imagePullSecrets"] == [{"name": "registry"}] for workload in own_overlay.ours)
    (incoming,) = own_overlay.one("NetworkPolicy", "inferfleet")["spec"]["ingress"]
    assert incoming["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}
    ]
    affinity = pod(worker)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert found_in(affinity, "values") == [["NVIDIA-H100-80GB-HBM3"]]
    assert selects(own_overlay.one("PodMonitor")["spec"]["selector"]["matchLabels"], worker)
    assert all(f"components/{name}" in DOCS for name in COMPONENTS)


def test_it_installs_the_keda_that_it_was_written_from() -> None:
    (read,) = re.findall(r"sources of KEDA ([\d.]+\d)", DOCS)
    assert re.findall(r"kedacore/keda --version (\S+)", DOCS) == [read]


def test_the_network_policy_of_your_own_lets_every_pod_out_to_the_collector_of_the_page_on_traces() -> None:
    (documented,) = re.findall(r"```yaml\n(apiVersion: networking.+?)```", DOCS, re.DOTALL)
    policy = yaml.safe_load(documented)
    manifests = render("overlays/agents")
    assert policy["metadata"]["namespace"] == manifests.one("NetworkPolicy")["metadata"]["namespace"]
    assert chosen_by(policy["spec"]["podSelector"]["matchLabels"], manifests) == manifests.ours
    assert policy["spec"]["policyTypes"] == ["Egress"]
    page = (ROOT / "docs/how-to/trace-jobs.md").read_text()
    (port,) = re.findall(r"OTEL_EXPORTER_OTLP_ENDPOINT=http://\w+:(\d+)", page)
    assert policy["spec"]["egress"] == [{"ports": [{"port": int(port), "protocol": "TCP"}]}]


def test_every_heading_that_it_links_to_is_there() -> None:
    headings = re.findall(r"^##+ (.+)$", DOCS, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", DOCS)) <= anchors


def test_every_setting_that_it_names_is_one() -> None:
    names = set(re.findall(r"\bINFERFLEET_([A-Z_]+)\b", DOCS))
    settings = WorkerSettings.model_fields | GatewaySettings.model_fields
    assert {name for name in names if name.lower() not in settings} == set()


def test_the_numbers_of_its_table_are_those_of_the_manifest() -> None:
    scaled = read_scaled_object(KEDA / "base/pool/scaledobject.yaml")
    rows = {
        "value": scaled.triggers[0].target,
        "activationValue": scaled.triggers[0].activation,
        "minReplicaCount": scaled.min_replicas,
        "maxReplicaCount": scaled.max_replicas,
        "pollingInterval": scaled.polling_interval_s,
        "cooldownPeriod": scaled.cooldown_period_s,
    }
    for name, value in rows.items():
        assert re.search(rf"\| `{name}` \| {value:g}( s)? \|", DOCS), name


def test_its_calculation_of_value_adds_up() -> None:
    found = re.search(r"value = (\d+) \+ ([\d.]+) × (\d+) = (\d+), written as (\d+)", DOCS)
    assert found is not None
    running, throughput, wait, value, written = map(float, found.groups())
    assert running + throughput * wait == pytest.approx(value, abs=0.5)
    assert written == read_scaled_object(KEDA / "base/pool/scaledobject.yaml").triggers[0].target
    assert pytest.approx(running / throughput, abs=0.05) == 5.5


def test_its_grace_period_is_the_codes() -> None:
    assert f"the drain timeout + {SETTLE_GRACE_S:g} s for the last writes" in DOCS
