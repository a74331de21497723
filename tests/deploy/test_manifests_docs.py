"""docs/deploy.md and the manifests say the same."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tests.deploy.conftest import KEDA, OVERLAYS, ROOT, containers, render

from inferfleet.local.autoscaler.scaled_object import read_scaled_object
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.worker import SETTLE_GRACE_S

DOCS = (ROOT / "docs/deploy.md").read_text()


def test_every_overlay_is_explained() -> None:
    assert {name for name in OVERLAYS if f"`{name}`" not in DOCS} == set()


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"deploy/keda[\w./-]*\w", DOCS))
    missing = {name for name in named if not (ROOT / name).exists()}
    assert {name for name in missing if not name.startswith("deploy/keda/overlays/mine")} == set()


def test_the_overlay_of_your_own_renders(tmp_path: Path) -> None:
    own = re.search(r"<<'YAML'\n(.+?)\nYAML\n", DOCS, re.DOTALL)
    assert own is not None
    shutil.copytree(KEDA, tmp_path / "keda")
    folder = tmp_path / "keda/overlays/mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(own[1])
    manifests = render(folder)
    images = {container["image"] for workload in manifests.workloads for container in containers(workload)}
    built = set(re.findall(r"-t (registry\S+)", DOCS))
    assert images == built


def test_every_heading_that_it_links_to_is_there() -> None:
    headings = re.findall(r"^## (.+)$", DOCS, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", DOCS)) <= anchors


def test_every_setting_that_it_names_is_one() -> None:
    names = set(re.findall(r"\bINFERFLEET_([A-Z_]+)\b", DOCS))
    assert {name for name in names if name.lower() not in WorkerSettings.model_fields} == set()


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
