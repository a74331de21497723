"""The init step that fills the model cache, run as Kubernetes runs it, with a stand-in for the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.conftest import KEDA

SCRIPT = KEDA / "base/fleet/warm_model_cache.py"

HUB = """
import os, pathlib, sys

def snapshot_download(model, *, revision, ignore_patterns):
    print("downloading", model, revision, ignore_patterns)
    if "HUB_DOWN" in os.environ:
        sys.exit("the hub is down")
"""


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder with a huggingface_hub that downloads nothing."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "huggingface_hub.py").write_text(HUB)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def warm(hub: Path, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(hub),
        "HF_HOME": str(cache),
        "INFERFLEET_MODEL": "owner/model",
        **variables,
    }
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("model", ["owner/model", "/"], ids=["a name", "a folder"])
def test_there_is_a_folder_for_what_vllm_compiles(hub: Path, cache: Path, model: str) -> None:
    for _ in range(2):
        assert warm(hub, cache, INFERFLEET_MODEL=model).returncode == 0
        assert (cache / "compiled").is_dir()


def test_a_model_is_downloaded_once(hub: Path, cache: Path) -> None:
    first, second = warm(hub, cache), warm(hub, cache, HUB_DOWN="1")
    assert first.returncode == second.returncode == 0
    assert "downloading owner/model main" in first.stdout
    assert second.stdout == "owner/model is in the cache\n"


def test_an_interrupted_download_is_taken_up_again(hub: Path, cache: Path) -> None:
    assert warm(hub, cache, HUB_DOWN="1").returncode != 0
    assert "downloading" in warm(hub, cache).stdout


def test_the_revision_is_the_one_that_the_engine_will_load(hub: Path, cache: Path) -> None:
    assert "owner/model main" in warm(hub, cache).stdout
    other = warm(hub, cache, INFERFLEET_ENGINE_ARGS='{"revision": "abc123", "max_model_len": 1024}')
    assert "downloading owner/model abc123" in other.stdout


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"INFERFLEET_MODEL": ""}, "INFERFLEET_MODEL names no model"),
        ({"INFERFLEET_ENGINE_ARGS": "{'revision': 1}"}, "INFERFLEET_ENGINE_ARGS is not JSON ("),
        ({"INFERFLEET_ENGINE_ARGS": "[1]"}, "INFERFLEET_ENGINE_ARGS must be a JSON object, not [1]"),
        ({"HF_HOME": "/dev/null"}, "cannot make /dev/null/compiled (Not a directory): the volume has to let"),
    ],
    ids=["no model", "no JSON", "no object", "no folder"],
)
def test_a_wrong_setting_or_volume_is_named_in_one_line(
    hub: Path, cache: Path, variables: dict[str, str], said: str
) -> None:
    refused = warm(hub, cache, **variables)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(said)
    assert refused.stderr.count("\n") == 1


def test_a_model_that_is_a_folder_needs_only_be_there(hub: Path, cache: Path) -> None:
    assert warm(hub, cache, INFERFLEET_MODEL=str(cache), HUB_DOWN="1").returncode == 0
    missing = warm(hub, cache, INFERFLEET_MODEL=str(cache / "none"))
    assert missing.returncode == 1
    assert missing.stderr == f"the model {cache / 'none'} is a folder that is not there\n"
