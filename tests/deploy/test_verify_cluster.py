"""scripts/verify-cluster, against a kubectl that records what it is asked and gives prepared answers.

That says nothing of clusters: it shows what the script asks for, and what it makes of the answers.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.deploy.conftest import DOCS, ROOT, Object, render
from tests.deploy.pod_security import violations
from tests.patience import PATIENCE_S

SCRIPT = ROOT / "scripts/verify-cluster"

KUBECTL = f"""#!{sys.executable} -IS
import json, pathlib, sys

folder = pathlib.Path(__file__).parent
asked = " ".join(sys.argv[1:])
given = sys.stdin.read() if "--filename=-" in asked else ""
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps({{"asked": asked, "given": given}}) + "\\n")
for words, answers in json.loads((folder / "answers.json").read_text()):
    if words in asked:
        seen = folder / f"{{words.replace('/', '_')}}.seen"
        number = int(seen.read_text()) if seen.exists() else 0
        seen.write_text(str(number + 1))
        answer = answers[min(number, len(answers) - 1)]
        if answer is None:
            sys.exit("Error from server (NotFound)")
        print(answer if isinstance(answer, str) else json.dumps(answer))
        sys.exit(0)
sys.exit(f"nothing is prepared for {{asked}}")
"""

Answers = dict[str, list[Any]]


def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("verify_cluster", str(SCRIPT))
    spec = importlib.util.spec_from_loader("verify_cluster", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["verify_cluster"] = module  # where dataclasses look
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def workload(replicas: int, name: str = "overlays/dev") -> Object:
    worker = deepcopy(render(name).workers[0])
    worker["spec"]["replicas"] = replicas
    return worker


def scaler(name: str = "overlays/dev", **spec: Any) -> Object:
    (found,) = render(name).all("ScaledObject", "HorizontalPodAutoscaler")
    ready = [{"type": "Ready", "status": "True"}, {"type": "AbleToScale", "status": "True"}]
    return found | {"spec": found["spec"] | spec, "status": {"conditions": ready}}


def pod_with_cost(name: str, cost: int | None) -> Object:
    annotations = {} if cost is None else {"controller.kubernetes.io/pod-deletion-cost": str(cost)}
    return {"metadata": {"name": name, "annotations": annotations}}


def items(*things: Object) -> Object:
    return {"items": list(things)}


def good() -> Answers:
    """What a fleet that works would say; the last answer to a question is repeated."""
    keda = {"spec": {"template": {"spec": {"containers": [{"image": "ghcr.io/kedacore/keda:2.20.2"}]}}}}
    return {
        "version": [{"serverVersion": {"gitVersion": "v1.34.1"}}],
        "get deployments --all-namespaces": [items(keda)],
        "get deployments,statefulsets": [items(workload(0))],
        "get scaledobjects.keda.sh": [items(scaler())],
        "get scaledobject ": [scaler()],
        "get deployment ": [workload(number) for number in (0, 0, 1, 1, 3, 3, 3, 0)],
        "get pods": [
            items(),
            items(pod_with_cost("worker-a", 0), pod_with_cost("worker-b", None)),
            items(pod_with_cost("worker-a", 7), pod_with_cost("worker-b", 4000)),
        ],
        "get pod inferfleet-verify": [
            {"status": {"phase": phase}} for phase in ("Running", "Running", "Succeeded")
        ],
        "apply": ["pod created"],
        "delete pod": ["pod deleted"],
        "logs inferfleet-verify": [None, "submitted 5", "submitted 5\nended 5 succeeded"],
        "logs worker-b": ["ready", "ready\n{'message': 'draining'}"],
    }


class Prepared:
    """A kubectl with these answers, first on PATH."""

    def __init__(self, folder: Path, answers: Answers) -> None:
        self.folder = folder
        (folder / "kubectl").write_text(KUBECTL)
        (folder / "kubectl").chmod(0o755)
        (folder / "answers.json").write_text(json.dumps(list(answers.items())))

    @property
    def path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    @property
    def calls(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def asked(self, words: str) -> list[str]:
        return [call["asked"] for call in self.calls if words in call["asked"]]


def test_a_fleet_that_works_gets_a_table_without_a_fault(tmp_path: Path) -> None:
    kubectl = Prepared(tmp_path, good())
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--jobs=5", "--max-tokens=10", "--interval=0"],
        env=os.environ | {"PATH": kubectl.path},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["what", "expected", "found"]
    assert [row[:3] for row in rows] == ["ok "] * 11
    assert "2.18 or later" in rows[1]
    # Whoever it deletes is the busiest worker, and nothing of its own stays.
    deleted = kubectl.asked("delete pod")
    assert len(deleted) == 2
    assert "delete pod worker-b" in deleted[0]
    assert "delete pod inferfleet-verify-" in deleted[1]
    # Beyond versions, it asks for things of this namespace only.
    elsewhere = {
        call["asked"] for call in kubectl.calls if not call["asked"].startswith("--namespace inferfleet ")
    }
    assert {call.split()[0] for call in elsewhere} == {"version", "get"}


def test_its_pod_is_admitted_and_connects_as_the_workers_do(tmp_path: Path) -> None:
    verify = script()
    for name in ("overlays/dev", "overlays/tls", "overlays/secret-files", "overlays/replicated"):
        answers = good() | {
            "get deployments,statefulsets": [items(workload(0, name))],
            "get scaledobjects.keda.sh": [items(scaler(name))],
        }
        kubectl = Prepared(tmp_path, answers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", kubectl.path)
            pool = verify.Pool(verify.Cluster("inferfleet", interval_s=0), "default")
        pod = verify.load_pod(pool, image=None, jobs=5, tokens=10)
        assert violations(pod["spec"]) == []
        (load,) = pod["spec"]["containers"]
        (worker,) = workload(0, name)["spec"]["template"]["spec"]["containers"]
        assert load["image"] == "inferfleet-producer:0.2.0"
        assert load["envFrom"] == worker["envFrom"]
        assert all(each in worker["env"] for each in load["env"])
        given = {each["name"] for each in load["env"]}
        needed = set(re.findall(r"\$\((\w+)\)", json.dumps(load["env"])))
        assert given == {"INFERFLEET_AMQP_URL", "INFERFLEET_REDIS_URL"} | needed
        mounted = {mount["name"] for mount in load["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
        assert mounted == {"overlays/tls": {"tls"}, "overlays/secret-files": {"connections"}}.get(name, set())


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], Prepared]]:
    """Run it without patience. Returns the exit code, what is wrong, and what it asked."""

    def run(answers: Answers, *options: str) -> tuple[int, list[str], Prepared]:
        verify = script()
        for name in ("STATISTICS_S", "HPA_SYNC_S", "START_S", "SLACK_S"):
            monkeypatch.setattr(verify, name, 0)
        kubectl = Prepared(tmp_path, answers)
        monkeypatch.setenv("PATH", kubectl.path)
        arguments = ["--jobs=5", "--max-tokens=10", "--interval=0", "--patience=0"]
        monkeypatch.setattr(sys, "argv", ["verify-cluster", *arguments, *options])
        code = verify.main()
        shown = capsys.readouterr()
        rows = shown.out.splitlines() if code != 2 else shown.err.splitlines()
        return code, [row for row in rows if not row.startswith(("ok", "  "))], kubectl

    return run


Run = Callable[..., tuple[int, list[str], Prepared]]


def hasty(**answers: list[Any]) -> Answers:
    """As ``good``, by numbers that leave no time to wait, so each question has one answer, or those given."""
    quick = scaler(pollingInterval=0, cooldownPeriod=0)
    return good() | {
        "get scaledobjects.keda.sh": [items(quick)],
        "get scaledobject ": [quick],
        "get deployment ": [workload(number) for number in (0, 1, 2, 2, 0)],
        "get pods": [items(pod_with_cost("worker-b", 4000))],
        "get pod inferfleet-verify": [{"status": {"phase": "Succeeded"}}],
        "logs inferfleet-verify": ["submitted 5", "submitted 5\nended 5 succeeded"],
        "logs worker-b": ["draining"],
        **{name.replace("_", " "): value for name, value in answers.items()},
    }


def test_it_finds_no_fault_where_there_is_none(run: Run) -> None:
    code, wrong, _ = run(hasty())
    assert (code, wrong) == (0, [])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"version": [{"serverVersion": {"gitVersion": "v1.28.9-gke.1"}}]}, ["Kubernetes"]),
        ({"get_deployments_--all-namespaces": [{"items": []}]}, ["KEDA"]),
        ({"get_scaledobject_": [{"kind": "ScaledObject", "status": {}}]}, ["ScaledObject is Ready"]),
        ({"get_pods": [{"items": []}]}, ["a busy worker has a deletion cost"]),
        ({"logs_worker-b": ["ready"]}, ["a deleted worker hands over"]),
        ({"logs_worker-b": [None]}, ["a deleted worker hands over"]),
        ({"logs_inferfleet-verify": ["submitted 5", "ended 4 succeeded 1 failed"]}, ["jobs ended"]),
        ({"logs_inferfleet-verify": ["Traceback"]}, ["jobs submitted", "jobs ended"]),
    ],
)
def test_each_fault_is_a_row(run: Run, answers: Answers, expected: list[str]) -> None:
    code, wrong, _ = run(hasty(**answers))
    assert code == 1
    assert [row.removeprefix("NOT").split("  ")[1] for row in wrong] == expected


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([1, 1, 1, 1, 1, 0], ["workers at rest"]),
        ([0, 1, 2, 2, 2], ["back at 0 workers"]),
        ([0, 0, 0, 0, 0], ["a worker is asked for", "workers at most"]),
    ],
)
def test_a_number_of_workers_that_does_not_follow_the_load_is_a_row(
    run: Run, replicas: list[int], expected: list[str]
) -> None:
    code, wrong, _ = run(hasty(get_deployment_=[workload(number) for number in replicas]))
    assert code == 1
    assert [row.removeprefix("NOT").split("  ")[1] for row in wrong] == expected


def test_the_plain_hpa_is_verified_without_keda(run: Run) -> None:
    hpa: Answers = {
        "get_scaledobjects.keda.sh": [None],
        "get_horizontalpodautoscalers": [items(scaler("overlays/hpa", behavior={}))],
        "get_horizontalpodautoscaler_": [scaler("overlays/hpa")],
    }
    code, wrong, kubectl = run(hasty(**hpa))
    assert (code, wrong) == (0, [])
    assert kubectl.asked("keda-operator") == []


def test_kedas_version_is_left_out_where_other_namespaces_cannot_be_read(run: Run) -> None:
    forbidden: Answers = {"get_deployments_--all-namespaces": [None]}
    code, wrong, _ = run(hasty(**forbidden))
    assert (code, wrong) == (0, [])


def test_no_worker_is_deleted_that_shall_stay(run: Run) -> None:
    code, _, kubectl = run(hasty(), "--no-drain")
    assert code == 0
    assert [call for call in kubectl.asked("delete pod") if "worker" in call] == []


def test_without_a_pool_there_is_nothing_to_verify(run: Run) -> None:
    nothing: Answers = {"get_deployments,statefulsets": [items()]}
    code, said, kubectl = run(hasty(**nothing), "--pool=chat")
    assert code == 2
    assert said[-1].startswith("there are 0 deployments,statefulsets with the labels")
    assert "inferfleet/pool=chat" in said[-1]
    assert kubectl.asked("apply") == []


def test_its_own_pod_goes_also_when_kubectl_fails(run: Run) -> None:
    code, said, kubectl = run(hasty(get_pods=[None]))
    assert code == 2
    assert "NotFound" in said[-1]
    assert len(kubectl.asked("delete pod inferfleet-verify-")) == 1


def test_it_needs_what_the_docs_say() -> None:
    verify = script()
    kubernetes, keda = (".".join(map(str, each)) for each in (verify.KUBERNETES, verify.KEDA))
    assert f"They need Kubernetes {kubernetes}, KEDA {keda}," in " ".join(DOCS.split())
