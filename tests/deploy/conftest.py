"""The manifests as `kubectl apply -k` would send them, read as data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.patience import PATIENCE_S

from inferfleet.schemas.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
KEDA = ROOT / "deploy/keda"
OVERLAYS = sorted(path.name for path in (KEDA / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (KEDA / "components").iterdir())

DOCS = (ROOT / "docs/deploy.md").read_text()

SECRETS = {
    "inferfleet-connections": {"amqp-url", "redis-url", "rabbitmq-http-url", "rabbitmq-tls"},
    "inferfleet-tls": {"ca.crt", "tls.crt", "tls.key"},
    "inferfleet-api-keys": {"keys.json"},
    "inferfleet-hugging-face": {"token"},
    "inferfleet-redis": {"password"},
    "rabbitmq-default-user": {"username", "password", "connection_string"},
}
"""The Secrets that docs/deploy.md names, with their keys. RabbitMQ's operator makes the last one."""

Object = dict[str, Any]


class Manifests:
    """All objects of one kustomization."""

    def __init__(self, name: str, objects: list[Object]) -> None:
        self.name = name
        self.objects = objects

    def __iter__(self) -> Iterator[Object]:
        return iter(self.objects)

    def all(self, *kinds: str) -> list[Object]:
        return [thing for thing in self.objects if thing["kind"] in kinds]

    def one(self, kind: str, name: str | None = None) -> Object:
        found = [thing for thing in self.all(kind) if name in (None, thing["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} of {kind} {name or ''} in {self.name}"
        return found[0]

    @property
    def workloads(self) -> list[Object]:
        """Everything that makes pods."""
        return self.all("Deployment", "StatefulSet", "Job")

    @property
    def ours(self) -> list[Object]:
        """Workloads that run our images."""
        return [
            thing for thing in self.workloads if pod_labels(thing)["app.kubernetes.io/name"] == "inferfleet"
        ]

    @property
    def workers(self) -> list[Object]:
        return [thing for thing in self.ours if pod_labels(thing)["app.kubernetes.io/component"] == "worker"]

    def variables(self, workload: Object) -> dict[str, str]:
        """The literal environment of the first container, without Secrets and fields."""
        container = containers(workload)[0]
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        return found | {line["name"]: line["value"] for line in container.get("env", []) if "value" in line}


def pod(workload: Object) -> Object:
    return workload["spec"]["template"]["spec"]


def pod_labels(workload: Object) -> dict[str, str]:
    return workload["spec"]["template"]["metadata"]["labels"]


def containers(workload: Object) -> list[Object]:
    """The containers, first the one that works."""
    return [*pod(workload)["containers"], *pod(workload).get("initContainers", [])]


def engine_of(worker: Object) -> Object:
    """The container in which a worker's model runs: the sidecar, if there is one."""
    sidecars = [each for each in pod(worker).get("initContainers", []) if each.get("restartPolicy")]
    return (sidecars or containers(worker))[0]


def selects(selector: Mapping[str, str], workload: Object) -> bool:
    return selector.items() <= pod_labels(workload).items()


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


def example_connections() -> dict[str, str]:
    lines = (KEDA / "base/fleet/connections.example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


@lru_cache
def render(folder: str | Path) -> Manifests:
    """Render a folder of deploy/keda, or another one."""
    done = subprocess.run(
        [*kustomize(), str(KEDA / folder)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    # kubectl says on stderr what is deprecated.
    assert done.stderr == ""
    return Manifests(str(folder), [thing for thing in yaml.safe_load_all(done.stdout) if thing])


@lru_cache
def kustomize() -> tuple[str, ...]:
    kubectl = program("kubectl")
    said = subprocess.run(
        [kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True
    ).stdout
    version = str(json.loads(said).get("kustomizeVersion", "v2"))
    if int(re.findall(r"\d+", version)[0]) < 5:
        pytest.skip(f"kubectl brings kustomize {version}; the manifests need 5")
    return (kubectl, "kustomize")


def program(name: str) -> str:
    """The path of kubectl or helm: the one beside this Python, or on PATH. Skips the test without one."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def documented_overlay() -> tuple[str, str]:
    """The overlay that docs/deploy.md writes for the reader, and what it tells to add for some clusters."""
    own = re.search(r"<<'YAML'\n(.+?)\nYAML\n", DOCS, re.DOTALL)
    (addition,) = re.findall(r"```yaml\n(components:.+?)```", DOCS, re.DOTALL)
    assert own is not None
    return own[1], addition


@pytest.fixture
def mine(tmp_path: Path) -> Callable[[str], Manifests]:
    """Render an overlay of the reader's, beside copies of ours."""
    shutil.copytree(KEDA, tmp_path / "keda")
    folder = tmp_path / "keda/overlays/mine"
    folder.mkdir()

    def rendered(kustomization: str) -> Manifests:
        (folder / "kustomization.yaml").write_text(kustomization)
        return render(folder)

    return rendered


@pytest.fixture
def own_overlay(mine: Callable[[str], Manifests]) -> Manifests:
    """The documented overlay with all that docs/deploy.md adds to it."""
    return mine("\n".join(documented_overlay()))


@pytest.fixture(params=["base", *(f"overlays/{name}" for name in OVERLAYS)])
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Every kustomization that somebody could apply, one after the other."""
    return render(request.param)


ReadSettings = Callable[[Object, Manifests], WorkerSettings]


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> ReadSettings:
    """The settings that a worker of these manifests would have."""

    def read(worker: Object, manifests: Manifests) -> WorkerSettings:
        for name, value in manifests.variables(worker).items():
            monkeypatch.setenv(name, value)
        return WorkerSettings()

    return read
