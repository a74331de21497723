"""What a test leaves open is the error of that test, and of no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LEAKY = """
import socket

class Owner:
    def __init__(self):
        self.itself = self
        self.socket = socket.socket()

def test_that_leaves_a_socket_open():
    Owner()

async def test_that_leaves_nothing():
    pass
"""


def test_an_open_socket_is_an_error_of_the_test_that_left_it(tmp_path: Path) -> None:
    file = tmp_path / "test_leaky.py"
    file.write_text(LEAKY)
    options = ["-v", "--tb=no", "-p", "no:cacheprovider", "-p", "tests.conftest", "-c", "pyproject.toml"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "test_that_leaves_a_socket_open ERROR" in ended.stdout
    assert "test_that_leaves_nothing ERROR" not in ended.stdout
