"""Completion with Tab: the script works in a real bash, and each shell is told the same words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from inferfleet.schemas import Priority

PRIORITIES = [each.name.lower() for each in Priority]

NOWHERE = {"INFERFLEET_REDIS_URL": "redis://127.0.0.1:1/0", "INFERFLEET_AMQP_URL": "amqp://127.0.0.1:1/"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the command ``inferfleet`` of this Python, whether that is on PATH or not."""
    command = tmp_path / "bin" / "inferfleet"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m inferfleet.cli "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **NOWHERE, "PATH": path, "HOME": str(tmp_path)}


def in_bash(script: str, environment: dict[str, str]) -> list[str]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    ended = subprocess.run(
        # With only one command, bash would become that command, which then finds no shell that called it.
        [bash, "--norc", "-c", f"{script}\nexit $?"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


COMPLETE = """
complete_words() {
    COMP_WORDS=("$@")
    COMP_CWORD=$(($# - 1))
    COMPREPLY=()
    _inferfleet_completion inferfleet
    echo "${COMPREPLY[*]}"
}
complete_words inferfleet can
complete_words inferfleet submit --prio
complete_words inferfleet submit --priority ""
complete_words inferfleet submit --on-busy re
complete_words inferfleet dead re
complete_words inferfleet chat --pool ""
complete_words inferfleet explode --x
"""


def test_bash_completes_commands_options_and_values(environment: dict[str, str]) -> None:
    """A command that does not exist, and services that do not answer, complete to nothing."""
    lines = in_bash(f'eval "$(inferfleet --show-completion)"\n{COMPLETE}', environment)
    assert lines == ["cancel", "--priority", " ".join(PRIORITIES), "reject", "replay", "", ""]


def test_the_completion_that_was_installed_works_in_the_next_bash(environment: dict[str, str]) -> None:
    (*_, _) = in_bash("inferfleet --install-completion", environment)
    lines = in_bash(f'source "$HOME/.bashrc"\n{COMPLETE}', environment)
    assert lines[:2] == ["cancel", "--priority"]


@pytest.mark.parametrize(
    ("shell", "variables"),
    [("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})],
)
def test_other_shells_are_told_the_same_words(
    environment: dict[str, str], shell: str, variables: dict[str, str]
) -> None:
    asked = {
        "_INFERFLEET_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "inferfleet submit --priority ",
    }
    ended = subprocess.run(
        ["inferfleet"],
        env={**environment, **variables, **asked},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert ended.stderr == ""
    for priority in PRIORITIES:
        assert priority in ended.stdout
