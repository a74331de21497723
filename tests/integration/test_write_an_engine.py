"""The engine of ``docs/how-to/write-an-engine.md``, installed as the page says, runs jobs and conforms."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.integration.conftest import PATIENCE_S, StartWorkerProcess
from tests.pages import write_files_of

from inferfleet.producer import Fleet


@pytest.fixture
def project(tmp_path: Path, environment: dict[str, str]) -> Path:
    """The package of the page, installed: its modules, and what is known of it, are where Python looks."""
    write_files_of("how-to/write-an-engine.md", tmp_path)
    declared = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    known = tmp_path / f"{declared['name']}-{declared['version']}.dist-info"
    known.mkdir()
    (known / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {declared['name']}\nVersion: {declared['version']}\n"
    )
    engines = declared["entry-points"]["inferfleet.engines"]
    (known / "entry_points.txt").write_text(
        "[inferfleet.engines]\n" + "\n".join(f"{name} = {value}" for name, value in engines.items())
    )
    environment["PYTHONPATH"] = str(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("project")
async def test_a_worker_runs_jobs_on_it(
    start_worker_process: StartWorkerProcess, fleet: Fleet, pool: str
) -> None:
    worker = await start_worker_process("--engine", "echo")
    ready = await worker.logged("ready")

    job = await fleet.submit(
        {"prompt": "so be it", "max_tokens": 4}, endpoint="/v1/completions", pool=pool, stream=True
    )
    result = await fleet.wait(job, timeout_s=PATIENCE_S)

    assert ready["model"] == "echo"
    assert result.raise_for_state().text == "so be it so "
    assert result.usage.completion_tokens == 4


async def test_it_passes_the_conformance_suite(project: Path, environment: dict[str, str]) -> None:
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-W", "error"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout
    assert "skipped" not in ended.stdout
