"""Pods that ask for little: security, images, access to the API, and one GPU each."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version

from tests.deploy.conftest import (
    KEDA,
    Manifests,
    containers,
    pod,
)


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
