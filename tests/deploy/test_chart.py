"""The Helm chart renders the objects of the kustomizations, and refuses values that mean nothing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.deploy.conftest import (
    DOCS,
    KEDA,
    OVERLAYS,
    ROOT,
    Manifests,
    Object,
    containers,
    engine_of,
    pod,
    program,
    render,
)
from tests.deploy.pod_security import violations
from tests.patience import PATIENCE_S

from inferfleet.schemas.names import job_queue, job_queues, run_queue

CHART = ROOT / "deploy/helm/inferfleet"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

SMALL = {"INFERFLEET_MODEL": "Qwen/Qwen2.5-1.5B-Instruct", "INFERFLEET_MAX_RUNNING": "16"}
SHARED_GPU = {
    "env": SMALL | {"INFERFLEET_ENGINE_ARGS": '{"max_model_len": 8192, "gpu_memory_utilization": 0.22}'},
    "gpu": {"resource": "nvidia.com/gpu.shared"},
    "scaling": {"jobsPerWorker": 24},
}
EXPOSED: dict[str, Any] = {"enabled": True, "apiKeysSecret": "inferfleet-api-keys"}


def added(path: str) -> list[Object]:
    """What a patch of an overlay adds: triggers, or a container."""
    return [each["value"] for each in yaml.safe_load((KEDA / "overlays" / path).read_text())]


SAME: dict[str, dict[str, Any]] = {
    "base": {},
    "overlays/scale-to-zero": {
        "pool": {"scaling": {"keda": {"cooldownPeriod": 600, "initialCooldownPeriod": 0}}}
    },
    "overlays/keep-one-warm": {"pool": {"scaling": {"minReplicas": 1}}},
    "overlays/multi-pool": {
        "pools": [
            {"name": "chat"},
            {
                "name": "embed",
                "env": {
                    "INFERFLEET_MODEL": "BAAI/bge-m3",
                    "INFERFLEET_ENGINE_ARGS": '{"runner": "pooling", "gpu_memory_utilization": 0.9}',
                    "INFERFLEET_MAX_RUNNING": "256",
                },
                "scaling": {"jobsPerWorker": 1000, "maxReplicas": 2},
            },
        ]
    },
    "overlays/canary": {
        "pools": [
            {"name": "chat"},
            {
                "name": "chat-v2",
                "env": {
                    "INFERFLEET_MODEL": "Qwen/Qwen3-8B",
                    "INFERFLEET_ENGINE_ARGS": '{"max_model_len": 16384, "gpu_memory_utilization": 0.9, '
                    '"served_model_name": "Qwen/Qwen2.5-7B-Instruct"}',
                },
                "scaling": {"minReplicas": 1},
            },
        ],
        "gateway": {"enabled": True},
    },
    "overlays/mig": {
        "pools": [
            {
                "name": "small",
                "env": SMALL
                | {"INFERFLEET_ENGINE_ARGS": '{"max_model_len": 8192, "gpu_memory_utilization": 0.9}'},
                "gpu": {"resource": "nvidia.com/mig-1g.10gb"},
                "scaling": {"jobsPerWorker": 24, "maxReplicas": 14},
            },
            {
                "name": "large",
                "env": {"INFERFLEET_MAX_RUNNING": "48"},
                "gpu": {"resource": "nvidia.com/mig-3g.40gb"},
                "scaling": {"jobsPerWorker": 72, "maxReplicas": 2},
            },
        ]
    },
    "overlays/time-slicing": {"pool": SHARED_GPU},
    "overlays/mps": {"pool": SHARED_GPU | {"sharedMemory": ""}},
    "overlays/slo": {
        "exporter": {"enabled": True},
        "prometheus": {"podMonitors": True},
        "pool": {"scaling": {"triggers": added("slo/triggers.yaml")}},
    },
    "overlays/consumption-time": {
        "pool": {"scaling": {"minReplicas": 1, "triggers": added("consumption-time/trigger.yaml")}}
    },
    "overlays/hpa": {
        "exporter": {"enabled": True},
        "prometheus": {"podMonitors": True},
        "pool": {"scaling": {"by": "hpa"}},
    },
    "overlays/gateway": {"gateway": {"enabled": True}},
    "overlays/gateway-ingress": {
        "gateway": EXPOSED | {"namespaces": ["ingress-nginx"], "ingress": {"enabled": True}}
    },
    "overlays/gateway-route": {"gateway": EXPOSED | {"namespaces": ["gateways"], "route": {"enabled": True}}},
    "overlays/gateway-streams": {
        "gateway": {"enabled": True, "scaling": {"openStreams": 1000}},
        "prometheus": {"podMonitors": True},
    },
    "overlays/agents": {"agents": {"enabled": True}},
    "overlays/vllm-sidecar": {
        "pool": {
            "env": {
                "INFERFLEET_ENGINE": "openai",
                "INFERFLEET_BASE_URL": "http://127.0.0.1:8000/v1",
                "INFERFLEET_ENGINE_ARGS": "{}",
            },
            "resources": {
                "requests": {"cpu": "1", "memory": "512Mi", "ephemeral-storage": None},
                "limits": {"memory": "2Gi"},
            },
            "sidecars": added("vllm-sidecar/vllm.yaml"),
        }
    },
    "overlays/tls": {"tls": True},
    "overlays/secret-files": {"secretFiles": True},
}
"""Values that give the objects of a kustomization."""

OWN: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "modelCache": {"storageClassName": "shared-files"},
    "prometheus": {"podMonitors": True, "namespace": "observability"},
    "priorityClass": {"create": True},
    "pool": {
        "env": {"INFERFLEET_WARM_WAIT_S": "5"},
        "runtimeClassName": "nvidia",
        "priorityClassName": "inferfleet-worker",
        "annotations": {
            "karpenter.sh/do-not-disrupt": "true",
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        },
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {
                                    "key": "nvidia.com/gpu.product",
                                    "operator": "In",
                                    "values": ["NVIDIA-H100-80GB-HBM3"],
                                }
                            ]
                        }
                    ]
                }
            }
        },
    },
}
"""Values that say what docs/deploy.md adds to an overlay for a cluster."""


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("helm"), *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


def template(
    values: dict[str, Any], folder: Path, *, namespace: str = "inferfleet"
) -> subprocess.CompletedProcess[str]:
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    return helm(
        "template", "release", str(CHART), f"--namespace={namespace}", f"--values={folder / 'values.yaml'}"
    )


def chart(values: dict[str, Any], folder: Path, *, namespace: str = "inferfleet") -> Manifests:
    done = template(values, folder, namespace=namespace)
    assert (done.returncode, done.stderr) == (0, "")
    return Manifests("chart", [thing for thing in yaml.safe_load_all(done.stdout) if thing])


def comparable(manifests: Manifests) -> dict[str, Object]:
    """The objects by kind and name, without what Helm and kustomize do in their own ways."""
    found = {}
    for thing in manifests:
        if thing["kind"] == "Namespace":  # helm install --create-namespace
            continue
        # kustomize tells a changed ConfigMap by its name, the chart by an annotation of the pods.
        thing = json.loads(re.sub(r"(inferfleet-[\w-]+)-[0-9a-z]{10}(?=\")", r"\1", json.dumps(thing)))
        metadata = thing["metadata"]
        for label in ("app.kubernetes.io/managed-by", "helm.sh/chart"):
            metadata["labels"].pop(label, None)
        annotations = metadata.get("annotations", {})
        # A Job is replaced and a volume kept by annotations for Helm or for Argo CD.
        if all(re.match(r"(helm\.sh|argocd\.argoproj\.io)/", name) for name in annotations):
            metadata.pop("annotations", None)
        template = thing["spec"].get("template") if thing["kind"] in {"Deployment", "Job"} else None
        if template:
            template["metadata"].get("annotations", {}).pop("checksum/settings", None)
            if not template["metadata"].get("annotations"):
                template["metadata"].pop("annotations", None)
            template["spec"].get("volumes", []).sort(key=lambda volume: volume["name"])
            for container in containers(thing):
                container["env"].sort(key=lambda variable: variable["name"])
                container.get("volumeMounts", []).sort(key=lambda mount: mount["mountPath"])
        found[f"{thing['kind']}/{metadata['name']}"] = thing
    return found


@pytest.mark.parametrize("kustomization", SAME)
def test_the_chart_renders_the_objects_of_the_kustomization(kustomization: str, tmp_path: Path) -> None:
    ours, theirs = comparable(chart(SAME[kustomization], tmp_path)), comparable(render(kustomization))
    assert set(ours) == set(theirs)
    for name, thing in ours.items():
        assert thing == theirs[name]


def test_the_chart_has_what_a_cluster_needs_as_values(tmp_path: Path, own_overlay: Manifests) -> None:
    values = deepcopy(OWN)
    values["images"] = {name: f"registry.example/{image}" for name, image in VALUES["images"].items()}
    # The overlay of the docs is one on scale-to-zero.
    values["pool"]["scaling"] = SAME["overlays/scale-to-zero"]["pool"]["scaling"]
    ours, theirs = comparable(chart(values, tmp_path)), comparable(own_overlay)
    assert set(ours) == set(theirs)
    for name, thing in ours.items():
        assert thing == theirs[name]


def test_the_values_of_the_docs_make_two_pools(tmp_path: Path) -> None:
    (documented,) = re.findall(r"```yaml\n(images:.+?)```", DOCS, re.DOTALL)
    manifests = chart(yaml.safe_load(documented), tmp_path)
    names = [each["metadata"]["name"] for each in manifests.all("ScaledObject")]
    assert names == ["inferfleet-worker-chat", "inferfleet-worker-embed"]
    built = set(re.findall(r"-t (registry\S+)", DOCS))
    assert {each["image"] for workload in manifests.workloads for each in containers(workload)} == built

    all_parts = {part: {"enabled": True} for part in ("exporter", "gateway", "agents")}
    manifests = chart(yaml.safe_load(documented) | all_parts, tmp_path)
    assert {each["image"] for workload in manifests.workloads for each in containers(workload)} == built


def test_the_exporter_may_have_an_image_of_its_own(tmp_path: Path) -> None:
    values = {"exporter": {"enabled": True}, "images": {"exporter": "registry.example/exporter:1"}}
    (exporter,) = containers(chart(values, tmp_path).one("Deployment", "inferfleet-exporter"))
    assert exporter["image"] == "registry.example/exporter:1"


def test_the_sidecar_of_the_docs_has_the_gpu_and_a_server_elsewhere_needs_none(tmp_path: Path) -> None:
    (documented,) = re.findall(r"```yaml\n(pools:.+?)```", DOCS, re.DOTALL)
    (worker,) = chart(yaml.safe_load(documented), tmp_path).workers
    sidecar, container = engine_of(worker), containers(worker)[0]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert {mount["name"] for mount in sidecar["volumeMounts"]} <= {
        volume["name"] for volume in pod(worker)["volumes"]
    }
    assert violations(pod(worker)) == []

    values = yaml.safe_load(documented)
    del values["pools"][0]["sidecars"]
    (alone,) = chart(values, tmp_path).workers
    assert "initContainers" not in pod(alone)
    assert {volume["name"] for volume in pod(alone)["volumes"]} == {"tmp", "home"}


def test_a_sidecar_may_have_another_user_and_another_root(tmp_path: Path) -> None:
    log = {"name": "log", "image": "registry.example/log:1", "securityContext": {"runAsUser": 7}}
    (worker,) = chart({"pool": {"sidecars": [log]}}, tmp_path).workers
    sidecar = engine_of(worker)
    assert sidecar["securityContext"]["runAsUser"] == 7
    assert sidecar["securityContext"]["readOnlyRootFilesystem"] is True
    assert "nvidia.com/gpu" in containers(worker)[0]["resources"]["limits"], "its engine is vLLM"


def test_the_queues_of_workers_count_in_the_pools_whose_turns_wait_for_their_workers(tmp_path: Path) -> None:
    pools = [{"name": "chat-v2", "env": {"INFERFLEET_WARM_WAIT_S": "2"}}, {"name": "embed"}]
    manifests = chart(VALUES | {"pools": pools}, tmp_path)
    watched = [each["spec"]["triggers"][0]["metadata"] for each in manifests.all("ScaledObject")]
    assert [each["queueName"] for each in watched] == [job_queues("chat-v2"), job_queue("embed")]
    assert [each.get("useRegex") for each in watched] == ["true", None]


def test_a_wait_that_is_set_for_all_pools_counts_as_one_of_each(tmp_path: Path) -> None:
    pools = [{"name": "chat"}, {"name": "embed"}]
    manifests = chart(
        VALUES | {"pools": pools, "fleet": {"INFERFLEET_WARM_WAIT_S": "2"}},
        tmp_path,
    )
    watched = [each["spec"]["triggers"][0]["metadata"] for each in manifests.all("ScaledObject")]
    assert [each["queueName"] for each in watched] == [job_queues("chat"), job_queues("embed")]


def test_the_docs_name_the_overlays_that_no_values_give() -> None:
    """A mesh needs annotations and a policy, another one other volumes; two bring services."""
    (named,) = re.findall(r"no values for the overlays ([^.]+)\.", DOCS)
    assert set(re.findall(r"`([\w-]+)`", named)) == {
        name for name in OVERLAYS if f"overlays/{name}" not in SAME
    }


def test_a_restricted_namespace_admits_every_pod(tmp_path: Path) -> None:
    parts = {name: {"enabled": True} for name in ("exporter", "agents")}
    workloads = chart(
        OWN | parts | {"gateway": EXPOSED, "tls": True, "secretFiles": True}, tmp_path
    ).workloads
    assert len(workloads) == 5
    for workload in workloads:
        assert violations(pod(workload)) == []


def test_helm_finds_no_fault() -> None:
    done = helm("lint", "--strict", "--quiet", str(CHART))
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "", "")


def test_changed_settings_roll_the_workers(tmp_path: Path) -> None:
    def checksum(values: dict[str, Any]) -> str:
        (worker,) = chart(values, tmp_path).workers
        return worker["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]

    changed: list[dict[str, Any]] = [
        {},
        {"fleet": {"INFERFLEET_QUEUE_TYPE": "quorum"}},
        {"pool": {"env": {"INFERFLEET_MAX_RUNNING": "65"}}},
    ]
    assert len({checksum(values) for values in changed}) == 3
    assert checksum({"pool": {"scaling": {"maxReplicas": 9}}}) == checksum({})


def test_the_chart_runs_agents_as_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/agents.md").read_text()
    (options,) = re.findall(r"helm upgrade --install .*?helm/inferfleet \\\n(.*?)```", page, re.DOTALL)
    agents = tmp_path / "agents.py"
    agents.write_text("planner = ...")
    given = shlex.split(options.replace("\\\n", "").replace("=agents.py", f"={agents}"))
    done = helm("template", "release", str(CHART), *given)
    assert (done.returncode, done.stderr) == (0, "")
    manifests = Manifests("chart", [thing for thing in yaml.safe_load_all(done.stdout) if thing])
    runner = manifests.one("Deployment", "inferfleet-agents")
    assert containers(runner)[0]["args"] == ["agent", "run", "agents:planner"]
    assert manifests.one("ConfigMap", "inferfleet-agents")["data"] == {"agents.py": "planner = ..."}


def test_runners_may_have_an_image_a_queue_and_no_keda(tmp_path: Path) -> None:
    agents = {
        "enabled": True,
        "run": ["ours.agents:planner", "ours.agents:buyer"],
        "image": "registry.example/agents:1",
        "queue": "night",
        "maxRuns": 4,
        "env": {"INFERFLEET_LEASE_S": "30"},
        "scaling": {"by": "none"},
    }
    manifests = chart({"agents": agents, "pool": {"scaling": {"by": "none"}}}, tmp_path)
    runner = manifests.one("Deployment", "inferfleet-agents")
    (container,) = containers(runner)
    assert (container["image"], container["args"][2:]) == (agents["image"], agents["run"])
    assert "workingDir" not in container
    settings = manifests.variables(runner)
    assert (settings["INFERFLEET_AGENT_QUEUE"], settings["INFERFLEET_MAX_RUNS"]) == ("night", "4")
    assert settings["INFERFLEET_LEASE_S"] == "30"
    assert manifests.all("ScaledObject", "TriggerAuthentication") == []
    del agents["scaling"]
    alone = chart({"agents": agents, "pool": {"scaling": {"by": "none"}}}, tmp_path)
    (trigger,) = alone.one("ScaledObject")["spec"]["triggers"]
    assert (trigger["metadata"]["queueName"], trigger["metadata"]["value"]) == (run_queue("night"), "4")
    assert alone.one("TriggerAuthentication")["metadata"]["name"] == trigger["authenticationRef"]["name"]


@pytest.mark.parametrize("text", ["70", "true", "no", "null", "0x1f"])
def test_a_value_that_yaml_would_read_as_something_else_stays_a_string(text: str, tmp_path: Path) -> None:
    def rendered(word: str, by: str) -> str:
        gateway = EXPOSED | {"apiKeysSecret": word, "namespaces": [word], "env": {"NO": word}, "host": word}
        gateway["ingress"] = {
            "enabled": True,
            "className": word,
            "tlsSecret": word,
            "annotations": {"a": word},
        }
        gateway["route"] = {"enabled": True, "parent": {"name": word}}
        manifests = chart(
            {
                "images": dict.fromkeys(VALUES["images"], word),
                "imagePullSecrets": [{"name": word}],
                "fleet": {"NO": word},
                "modelCache": {"storageClassName": word},
                "prometheus": {"podMonitors": True, "namespace": word},
                "exporter": {"enabled": True},
                "gateway": gateway,
                "agents": {"enabled": True, "image": word, "queue": word, "env": {"NO": word}},
                "pool": {
                    "env": {"INFERFLEET_MODEL": word},
                    "gpu": {"resource": word},
                    "annotations": {"a": word},
                    "runtimeClassName": word,
                    "priorityClassName": word,
                    "scaling": {"by": by},
                },
                "pools": [{"name": word}],
            },
            tmp_path,
            namespace=word,
        )
        for thing in manifests.workloads:
            assert all(
                isinstance(variable["name"], str) for each in containers(thing) for variable in each["env"]
            )
        return re.sub(r'"checksum/settings": "[0-9a-f]{64}"', "", json.dumps(list(manifests)))

    for by in ("keda", "hpa"):
        assert rendered(text, by) == rendered("placeholder", by).replace("placeholder", text)


def test_its_version_is_that_of_the_images() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"]
    for image in filter(None, VALUES["images"].values()):
        assert image.partition(":")[2].split("-")[0] == about["appVersion"]


# Values


@pytest.mark.parametrize(
    "values",
    [
        {"pol": {}},
        {"images": {"worker": "two words"}},
        {"fleet": {"queue_type": "quorum"}},
        {"pool": {"env": {"INFERFLEET_MAX_RUNNING": 64}}},
        {"pool": {"gpu": {"count": 0}}},
        {"pool": {"scaling": {"by": "prayer"}}},
        {"pool": {"sidecars": [{"name": "vllm"}]}},
        {"pool": {"sidecars": [{"name": "worker", "image": "vllm"}]}},
        {"pool": {"sidecars": [{"name": "vllm", "image": "vllm", "restartPolicy": "Never"}]}},
        {"pool": {"scaling": {"jobsPerWorker": "100"}}},
        {"pool": {"scaling": {"keda": {"cooldown": 1}}}},
        {"pool": {"scaling": {"behavior": {"scaleUp": {"policies": [{"type": "Pod"}]}}}}},
        {"gateway": {"scaling": {"openStreams": "1000"}}},
        {"gateway": {"env": {"INFERFLEET_MAX_BATCHES": 10}}},
        {"gateway": {"route": {"parent": {"listener": "https"}}}},
        {"agents": {"maxRuns": "32"}},
        {"agents": {"run": []}},
        {"agents": {"run": ["agents"]}},
        {"agents": {"modules": {"agents": "planner = ..."}}},
        {"agents": {"scaling": {"by": "hpa"}}},
        {"agents": {"scaling": {"minReplicas": 0}}},
        {"pools": [{}]},
        {"pools": [{"name": "Chat"}]},
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    done = template(values, tmp_path)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr


LONG_DRAIN = {"INFERFLEET_DRAIN_TIMEOUT_S": "300"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"pool": {"env": LONG_DRAIN}},
            "pool default.terminationGracePeriodSeconds: 90 is not more than 320",
        ),
        (
            {"pools": [{"name": "chat", "terminationGracePeriodSeconds": 80}]},
            "pool chat.terminationGracePeriodSeconds: 80 is not more than 80",
        ),
        (
            {"gateway": {"enabled": True}, "fleet": LONG_DRAIN},
            "gateway.terminationGracePeriodSeconds: 45 is not more than 310",
        ),
        (
            {"agents": {"enabled": True, "terminationGracePeriodSeconds": 40}},
            "agents.terminationGracePeriodSeconds: 40 is not more than 40",
        ),
        ({"gateway": {"ingress": {"enabled": True}}}, "gateway.enabled: ingress and route lead to gateways"),
        ({"gateway": {"route": {"enabled": True}}}, "gateway.enabled: ingress and route lead to gateways"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    values: dict[str, Any], told: str, tmp_path: Path
) -> None:
    done = template(values, tmp_path)
    assert done.returncode != 0
    assert told in done.stderr


def test_a_long_drain_is_allowed_with_a_longer_grace_period(tmp_path: Path) -> None:
    pool = {"env": LONG_DRAIN, "terminationGracePeriodSeconds": 330}
    worker = chart({"pool": pool}, tmp_path).one("Deployment")
    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 330


@pytest.mark.parametrize("way", ["ingress", "route"])
def test_whoever_comes_from_outside_needs_a_key_to_a_host_of_any_name(way: str, tmp_path: Path) -> None:
    gateway: dict[str, Any] = {"enabled": True, way: {"enabled": True}, "host": "*.example"}
    refused = template({"gateway": gateway}, tmp_path)
    assert refused.returncode != 0
    assert "gateway.apiKeysSecret" in refused.stderr
    thing = chart({"gateway": EXPOSED | gateway}, tmp_path).one(
        "Ingress" if way == "ingress" else "HTTPRoute"
    )
    assert "*.example" in {*thing["spec"].get("hostnames", []), thing["spec"]["rules"][0].get("host")}


def test_every_value_is_described_by_the_schema_and_has_a_default() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)

    def resolved(schema: Any) -> Any:
        return SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema

    def missing(schema: Any, values: Any, path: str) -> list[str]:
        found = []
        for name, part in resolved(schema).get("properties", {}).items():
            if name not in values:
                found.append(f"{path}{name}")
            elif isinstance(values[name], dict):
                found += missing(part, values[name], f"{path}{name}.")
        return found

    assert set(missing(SCHEMA, VALUES, "")) == {
        "global",
        "gateway.route.parent.sectionName",
        "pool.name",
        "pool.scaling.behavior.scaleUp.tolerance",
        "pool.scaling.behavior.scaleDown.tolerance",
        "pool.scaling.keda.initialCooldownPeriod",
        "pool.scaling.keda.idleReplicaCount",
    }
