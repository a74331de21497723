"""``make`` sets up what a command needs, once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

PYTHON = f"""\
#!/usr/bin/env bash
if [[ $1 == -m ]]; then
  mkdir -p "$4/bin"
  cp "$0" "${{0%/*}}/pip" "$4/bin"
else
  exec {sys.executable} "$@"
fi
"""
"""Makes virtual environments that have the ``pip`` beside it."""

PIP = """\
#!/usr/bin/env bash
folder=${0%/bin/pip}
info=$folder/lib/python3/site-packages/inferfleet-0.dist-info
mkdir -p "$info"
echo "$*" >>"$folder/installed"
echo '{"dir_info": {'"$([[ " $* " != *" -e "* ]] || echo '"editable": true')"'}}' >"$info/direct_url.json"
"""
"""Installs only what pip writes about how this package was installed."""


@pytest.mark.parametrize("target", TARGETS)
def test_no_command_makes_a_second_virtual_environment(target: str) -> None:
    commands = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert len(re.findall(r"^scripts/setup-(?:venv|engine-venv|docs) ", commands, re.MULTILINE)) <= 1


def test_an_environment_grows_and_is_made_anew_only_if_the_user_replaced_the_package(tmp_path: Path) -> None:
    for name, text in {"python": PYTHON, "pip": PIP}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    folder = tmp_path / "venv"

    def set_up(package: str) -> None:
        subprocess.run([ROOT / "scripts/setup-venv", folder, tmp_path / "python", package], check=True)

    set_up(".[local]")
    set_up(".[local]")
    set_up(".[dev]")
    set_up(".[local]")
    subprocess.run([folder / "bin/pip", "install", "."], check=True)
    set_up(".[dev]")

    installed = (folder / "installed").read_text(encoding="utf-8").splitlines()
    assert installed == [
        *("install -qq -e .[local]", "install -qq -e .[dev]"),
        *("install .", "install -qq -e .[dev]"),
    ]


@pytest.mark.xdist_group("together")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process")
def test_pytest_xdist_is_told_which_tests_belong_together(request: pytest.FixtureRequest) -> None:
    """Else each process would start what they share."""
    assert request.node.nodeid.endswith("@together")
