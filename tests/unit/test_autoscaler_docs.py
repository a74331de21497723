"""docs/autoscaling.md agrees with the code, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferfleet.cli.root import build
from inferfleet.exporter.metrics import GAUGES
from inferfleet.local.autoscaler.profile import EngineProfile
from inferfleet.local.autoscaler.scaled_object import read_scaled_object

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "autoscaling.md").read_text(encoding="utf-8")
MANIFEST = ROOT / "deploy" / "keda" / "base" / "pool" / "scaledobject.yaml"


def test_the_simulated_example_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, printed = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", DOCUMENT, re.DOTALL)[0]
    command = re.findall(r"^    inferfleet (autoscale .*\\\n.*)$", DOCUMENT, re.MULTILINE)[0]
    arguments = command.replace("\\\n", " ").replace("deploy/keda", str(ROOT / "deploy" / "keda")).split()
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/autoscaling.md", "exec"), {})

    ended = CliRunner().invoke(build(arguments), arguments)

    assert ended.exit_code == 0, ended.output
    assert ended.stdout == printed
    assert (tmp_path / "plan.svg").exists()


def test_every_field_of_a_profile_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCUMENT, re.MULTILINE))

    fields = EngineProfile()
    assert {name: float(value) for name, value in documented.items()} == {
        name: float(getattr(fields, name))
        for name in ("load_s", "max_running", "look_ahead", "drain_timeout_s")
    }


def test_every_metric_of_the_exporter_is_documented() -> None:
    documented = set(re.findall(r"^\| `(inferfleet_\w+)` \|", DOCUMENT, re.MULTILINE))

    assert documented == {name for name, _, _ in GAUGES} | {
        "inferfleet_workers",
        "inferfleet_unfinished_jobs",
        "inferfleet_pool_attained_tokens",
        "inferfleet_exporter_up",
        "inferfleet_exporter_info",
    }


def test_the_manifest_of_the_cluster_can_be_followed() -> None:
    read = read_scaled_object(MANIFEST)

    assert read.pool == "default"
    assert read.behavior is not None
