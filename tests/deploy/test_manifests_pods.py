"""Pods that ask for little: security, images, access to the API, and one GPU each."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from aiohttp import web
from tests.deploy.conftest import (
    KEDA,
    Manifests,
    Object,
    containers,
    engine_of,
    pod,
)
from tests.deploy.pod_security import violations

from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.deletion_cost import keep_deletion_cost


def test_a_restricted_namespace_admits_every_pod(manifests: Manifests) -> None:
    labels = manifests.one("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in manifests.workloads:
        assert violations(pod(workload)) == []
        for container in containers(workload):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


def test_our_containers_run_as_the_images_user_and_write_nowhere_but_in_volumes(manifests: Manifests) -> None:
    assert "--uid 10001" in (KEDA.parents[1] / "Dockerfile").read_text()
    for workload in manifests.ours:
        assert pod(workload)["securityContext"]["runAsUser"] == 10001
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in containers(workload))


def test_no_probe_takes_a_process_that_is_busy_for_a_second_for_one_that_is_ill(manifests: Manifests) -> None:
    """Kubernetes' own limit is one second; a pod that is not ready is the first that is deleted."""
    for workload in manifests.ours:
        for container in containers(workload):
            for name in {"startupProbe", "readinessProbe", "livenessProbe"} & container.keys():
                assert container[name].get("timeoutSeconds", 1) >= 5, (container["name"], name)


def test_images_are_pinned_to_this_version(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        for container in containers(workload):
            name, _, tag = container["image"].partition(":")
            assert tag
            assert tag != "latest"
            if name.startswith("inferfleet-"):
                assert tag.split("-")[0] == version("inferfleet")


async def test_a_worker_may_do_what_it_asks_kubernetes_for_and_nothing_else(
    manifests: Manifests, tmp_path: Path
) -> None:
    assert not manifests.all("ClusterRole", "ClusterRoleBinding")
    rules = [rule for role in manifests.all("Role") for rule in role["rules"]]
    if manifests.name == "overlays/statefulset":
        assert rules == []
        return
    granted = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == await calls_of_a_worker(tmp_path)
    (binding,) = manifests.all("RoleBinding")
    (subject,) = binding["subjects"]
    namespace = manifests.one("Namespace")["metadata"]["name"]
    assert (subject["name"], subject["namespace"]) == ("inferfleet-worker", namespace)
    for workload in manifests.workloads:
        if workload not in manifests.workers:
            assert pod(workload)["automountServiceAccountToken"] is False


async def calls_of_a_worker(account: Path) -> set[tuple[str, str, str]]:
    """Every request of a worker to the API server, as RBAC sees it: API group, resource, verb."""
    (account / "token").write_text("token")
    calls: set[tuple[str, str, str]] = set()
    asked = asyncio.Event()

    async def api(request: web.Request) -> web.Response:
        # A path of the core group that names an object: /api/v1/namespaces/NAMESPACE/RESOURCE/NAME.
        _, api, version, namespaces, namespace, resource, name = request.path.split("/")
        assert (api, version, namespaces, namespace, name) == ("api", "v1", "namespaces", "inferfleet", "pod")
        calls.add(("", resource, {"GET": "get", "PUT": "update"}.get(request.method, request.method.lower())))
        asked.set()
        return web.json_response({})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", api)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        settings = WorkerSettings(
            pod_name="pod",
            pod_namespace="inferfleet",
            kubernetes_url=f"http://127.0.0.1:{runner.addresses[0][1]}",
            service_account_dir=account,
            deletion_cost_interval_s=0.01,
        )
        asking = asyncio.create_task(keep_deletion_cost(settings, cost=lambda: 1))
        await asked.wait()
        asking.cancel()
        await asyncio.wait([asking])
    finally:
        await runner.cleanup()
    return calls


def test_only_the_deletion_cost_asks_kubernetes() -> None:
    """Another caller belongs into ``calls_of_a_worker``."""
    callers = {
        path.name
        for path in KEDA.parents[1].glob("*/inferfleet/**/*.py")
        if re.search(r"kubernetes_url|service_account_dir", path.read_text())
    }
    assert callers == {"settings.py", "deletion_cost.py"}


def test_all_is_in_one_namespace_and_nothing_is_there_twice(manifests: Manifests) -> None:
    names = Counter((thing["kind"], thing["metadata"]["name"]) for thing in manifests)
    assert set(names.values()) == {1}
    for thing in manifests:
        if thing["kind"] != "Namespace":
            assert thing["metadata"]["namespace"] == manifests.one("Namespace")["metadata"]["name"]


def literals(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def test_every_worker_asks_for_one_gpu_or_one_share(manifests: Manifests) -> None:
    for worker in manifests.workers:
        limits = engine_of(worker)["resources"]["limits"]
        if manifests.name == "overlays/dev":
            assert limits.keys() == {"memory"}
            continue
        assert [amount for name, amount in limits.items() if name.startswith("nvidia.com/")] == [1]
        assert "nvidia.com/gpu" not in {
            name
            for each in containers(worker)
            if each is not engine_of(worker)
            for name in each["resources"]["limits"]
        }
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod(worker)[
            "tolerations"
        ]
        assert set(pod(worker)["affinity"]["nodeAffinity"]) == {
            "preferredDuringSchedulingIgnoredDuringExecution"
        }, "a device plugin alone sets no label"


def test_what_a_worker_compiles_outlives_its_pod(manifests: Manifests) -> None:
    for worker in manifests.workers:
        mounts = engine_of(worker)["volumeMounts"]
        root = literals(engine_of(worker)).get("VLLM_CACHE_ROOT")
        if manifests.name == "overlays/dev":
            assert root is None
            continue
        # The folder that the init step makes on the volume of the models (test_model_cache.py).
        assert [mount for mount in mounts if mount["mountPath"] == root] == [
            {"name": "models", "mountPath": "/compiled", "subPath": "compiled"}
        ]


def test_a_worker_reads_its_model_from_the_volume_that_was_warmed(manifests: Manifests) -> None:
    for worker in manifests.workers:
        if manifests.name == "overlays/dev":
            assert "initContainers" not in pod(worker)
            continue
        warming = pod(worker)["initContainers"][0]
        container = engine_of(worker)
        variables = literals(container)
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
