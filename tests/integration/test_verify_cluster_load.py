"""What scripts/verify-cluster runs in a pod works on real services."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.integration.conftest import PATIENCE_S, StartWorker

SCRIPT = Path(__file__).parents[2] / "scripts/verify-cluster"


async def test_the_pod_submits_its_jobs_and_says_how_they_ended(
    environment: dict[str, str], pool: str, start_worker: StartWorker
) -> None:
    await start_worker()
    (load,) = re.findall(r'^LOAD = """\n(.+?)^"""$', SCRIPT.read_text(), re.DOTALL | re.MULTILINE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", load, "3", "5"),
        env=environment | {"INFERFLEET_POOL": pool},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert said.decode().splitlines() == ["submitted 3", "ended 3 succeeded"]
