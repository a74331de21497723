"""Runners of agents on Kubernetes: their agents, their health, and what scales them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.deploy.conftest import ROOT, Manifests, containers, pod, render

from inferfleet.agents.loading import load_agents
from inferfleet.agents.runner import RELEASE_S, prefetch_of
from inferfleet.agents.settings import RunnerSettings
from inferfleet.schemas.names import run_queue
from inferfleet.wire.health_port import LIVE_PATH, READY_PATH


def modules_of(manifests: Manifests) -> dict[str, str]:
    """The files that the runner finds in the folder in which it starts."""
    runner = manifests.one("Deployment", "inferfleet-agents")
    (name,) = [volume["configMap"]["name"] for volume in pod(runner)["volumes"] if "configMap" in volume]
    return manifests.one("ConfigMap", name)["data"]


def test_runners_load_their_agents_answer_probes_and_scale_by_their_queue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifests = render("overlays/agents")
    runner = manifests.one("Deployment", "inferfleet-agents")
    (container,) = containers(runner)
    for name, value in manifests.variables(runner).items():
        monkeypatch.setenv(name, value)
    settings = RunnerSettings()
    assert container["ports"] == [{"name": "http", "containerPort": settings.http_port}]
    assert container["readinessProbe"]["httpGet"] == {"path": READY_PATH, "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": LIVE_PATH, "port": "http"}
    assert pod(runner)["terminationGracePeriodSeconds"] > settings.drain_timeout_s + 2 * RELEASE_S
    for file, text in modules_of(manifests).items():
        (tmp_path / file).write_text(text)
    assert container["workingDir"] in {mount["mountPath"] for mount in container["volumeMounts"]}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    *command, place = container["args"]
    assert command == ["agent", "run"]
    assert [agent.name for agent in load_agents([place])] == ["assistant"]
    scaled = manifests.one("ScaledObject", "inferfleet-agents")["spec"]
    assert scaled["scaleTargetRef"]["name"] == runner["metadata"]["name"]
    assert scaled["minReplicaCount"] == 1, "runners declare the queue, and wake runs"
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["queueName"] == run_queue(settings.agent_queue)
    runs_of_each = int(trigger["metadata"]["value"])
    assert runs_of_each == settings.max_runs
    assert runs_of_each <= prefetch_of(settings) <= 1.2 * runs_of_each, (
        "a runner that is added finds messages"
    )
    assert "replicas" not in runner["spec"]


def test_the_agents_of_your_own_replace_those_of_the_base(
    mine: Callable[[str], Manifests], tmp_path: Path
) -> None:
    page = (ROOT / "docs/how-to/agents.md").read_text()
    (documented,) = re.findall(r"```yaml\n(.+?)```", page, re.DOTALL)
    (tmp_path / "keda/overlays/mine/agents.py").write_text("planner = ...")
    manifests = mine(documented)
    runner = manifests.one("Deployment", "inferfleet-agents")
    assert containers(runner)[0]["args"] == ["agent", "run", "agents:planner"]
    assert modules_of(manifests) == {"agents.py": "planner = ..."}


def test_runners_that_are_added_to_an_overlay_with_tls_have_its_certificates(
    mine: Callable[[str], Manifests],
) -> None:
    _, _, section = (
        (ROOT / "docs/deploy.md").read_text().partition("### Adding a gateway or runners of agents")
    )
    documented = re.search(r"```yaml\n(.+?)```", section, re.DOTALL)
    assert documented is not None
    runner = mine(documented.group(1)).one("Deployment", "inferfleet-agents")
    assert "tls" in {mount["name"] for mount in containers(runner)[0]["volumeMounts"]}
