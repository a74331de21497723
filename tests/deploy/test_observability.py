"""deploy/observability: what is made is up to date, each alert has a runbook, and promtool's tests pass."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.conftest import KEDA, ROOT, render
from tests.patience import PATIENCE_S

FOLDER = ROOT / "deploy/observability"
RUNBOOKS = ROOT / "docs/how-to/runbooks.md"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def test_the_files_are_what_their_sources_say() -> None:
    files: dict[str, str] = runpy.run_path(str(ROOT / "scripts/draw-dashboards"))["files"]()

    assert {f"dashboards/{path.name}" for path in DASHBOARDS} | {"prometheus-rule.yaml"} == files.keys()
    stale = [name for name, text in files.items() if (FOLDER / name).read_text() != text]
    assert stale == [], "run scripts/draw-dashboards"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_imported_anywhere_and_explains_each_panel(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]

    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_each_alert_has_a_severity_and_a_section_in_the_runbooks_and_each_section_an_alert() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)

    assert sections == [alert["alert"] for alert in ALERTS]
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert alert["annotations"]["runbook"] == f"docs/how-to/runbooks.md#{alert['alert'].lower()}"


def test_each_runbook_says_what_it_means_where_to_look_and_what_to_do() -> None:
    for section in RUNBOOKS.read_text().split("\n## ")[1:]:
        assert re.findall(r"^\*\*(\w+):\*\*", section, re.MULTILINE) == ["Means", "Look", "Do"], section


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run(
        [promtool, "test", "rules", str(FOLDER / "rules-test.yml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = (FOLDER / "rules-test.yml").read_text()
    assert [alert["alert"] for alert in ALERTS if f'"{alert["alert"]}"' not in tested] == []


def test_the_component_adds_rules_and_dashboards_to_an_overlay(tmp_path: Path) -> None:
    shutil.copytree(KEDA, tmp_path / "keda")
    shutil.copytree(FOLDER, tmp_path / "observability")
    overlay = tmp_path / "keda/overlays/mine"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "resources: [../../base]\ncomponents: [../../../observability]\n"
    )

    manifests = render(overlay)

    assert manifests.one("PrometheusRule")["spec"] == RULES
    dashboards = manifests.one("ConfigMap", "inferfleet-dashboards")
    assert dashboards["data"].keys() == {path.name for path in DASHBOARDS}
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    namespaces = {each["metadata"].get("namespace") for each in manifests if each["kind"] != "Namespace"}
    assert namespaces == {"inferfleet"}, "kubectl would put what names none into that of its context"
