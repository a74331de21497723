"""A fault that does not happen is found out: by the tests that inject it, and by ``pytest --without``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent

PROVES_NOTHING = """
from inferfleet.local.chaos.proxy import Direction, Proxy

async def test_that_would_pass_without_its_fault(services):
    async with Proxy(services.redis_url) as link:
        link.hold(Direction.TO_CLIENT)
"""


def run_without(fault: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    options = ["--services", "embedded", "--tb=no", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml"]
    # A test that fails may leave something open.
    options += ["-W", "default", "-p", "no:hypothesispytest"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--without", fault, *options, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("fault", "file"),
    [
        ("hold", "test_pipeline.py"),
        ("reset", "test_idle_redis_connections.py"),
        ("kill", "test_redis_outages.py"),
    ],
)
def test_every_test_that_injects_a_fault_fails_without_it(fault: str, file: str) -> None:
    ended = run_without(fault, TESTS / file)
    assert ended.returncode == 0, ended.stdout
    assert "injected the fault" in ended.stdout


def test_a_test_that_passes_without_its_fault_is_named(tmp_path: Path) -> None:
    file = tmp_path / "test_proves_nothing.py"
    file.write_text(PROVES_NOTHING)
    ended = run_without("hold", "-p", "tests.conftest", file)
    assert ended.returncode == 1
    assert "SURVIVED without its fault" in ended.stdout
    assert "test_that_would_pass_without_its_fault" in ended.stdout
