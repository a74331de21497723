"""The folders in which a gateway has copies of the inputs of batches."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from inferfleet.gateway.batches.scratch import remove_abandoned, scratch

HOLDS_ONE = """
import sys
from inferfleet.gateway.batches.scratch import scratch
with scratch() as folder:
    (folder / "input").write_text("a prompt")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_removed_at_the_end(temporary: Path) -> None:
    with scratch() as folder:
        (folder / "input").write_text("a prompt")
    assert list(temporary.iterdir()) == []


def test_what_a_killed_gateway_has_left_is_removed_and_nothing_of_a_live_one(temporary: Path) -> None:
    (temporary / "inferfleet-batch-run-link").symlink_to(temporary)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_ONE],
        env={"TMPDIR": str(temporary), "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        with scratch() as own:
            remove_abandoned()
            assert own.exists()
        assert (folder / "input").read_text() == "a prompt"
        other.kill()
        other.wait()
        assert folder.exists()
        remove_abandoned()
    assert not folder.exists()
    assert [each.name for each in temporary.iterdir()] == ["inferfleet-batch-run-link"]


def test_a_folder_that_another_gateway_removes_before_it_is_locked_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(prefix: str) -> str:
        made.append(tempfile.mkdtemp(prefix=prefix))
        if len(made) == 1:
            remove_abandoned()
        return made[-1]

    monkeypatch.setattr("inferfleet.gateway.batches.scratch.mkdtemp", make)
    with scratch() as folder:
        assert [str(folder)] == made[1:]
        assert folder.exists()
    assert list(temporary.iterdir()) == []
