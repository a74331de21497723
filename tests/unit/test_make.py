"""``make`` sets up what a command needs, once."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_no_command_makes_a_second_virtual_environment(target: str) -> None:
    commands = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert len(re.findall(r"^scripts/setup-(?:venv|engine-venv|docs) ", commands, re.MULTILINE)) <= 1
