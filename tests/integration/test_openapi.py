"""Every route of the gateway, held against the OpenAPI document by schemathesis."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from tests.integration.conftest import PATIENCE_S, StartGateway, StartWorker, chat

from inferfleet.agents import AgentRuns
from inferfleet.producer import Fleet
from inferfleet.schemas.job import DEFAULT_POOL

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")

# A request that the document allows may still be refused: it names no pool that exists, or no session.
NOT_PROMISED = "positive_data_acceptance"


async def test_no_request_breaks_the_gateway_or_gets_an_answer_that_the_document_does_not_describe(
    fleet: Fleet,
    start_gateway: StartGateway,
    start_worker: StartWorker,
    pool: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    examples: int = request.config.getoption("--openapi-examples")
    await start_worker()
    # The examples name this pool, in which they would wait for ever if another test has left it behind.
    await start_worker(pool=DEFAULT_POOL)
    gateway = await start_gateway(files_url=str(tmp_path / "files"))
    job = await fleet.submit(chat(), pool=pool, session_id=f"{pool}-session")
    await fleet.wait(job, timeout_s=PATIENCE_S)
    run_id = await AgentRuns(fleet).start("clerk", "pay", queue=pool)
    (tmp_path / "schemathesis.toml").write_text(
        f"""
        [parameters]
        "path.job_id" = "{job.id}"
        "path.session_id" = "{job.session_id}"
        "path.model" = "{pool}"
        "path.run_id" = "{run_id}"
        """
    )
    schemathesis = await asyncio.create_subprocess_exec(
        SCHEMATHESIS,
        "run",
        f"{gateway.url}/openapi.json",
        *("--phases", "examples,fuzzing,stateful", "--max-examples", str(examples), "--seed", "1"),
        *("--exclude-checks", NOT_PROMISED, "--request-timeout", str(PATIENCE_S)),
        *("--generation-database", "none", "--no-color"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await schemathesis.communicate()

    said = told.decode()
    assert schemathesis.returncode == 0, said
    assert re.search(r"Tested: [1-9]", said), said
    assert "Unresolvable references" not in said, said
