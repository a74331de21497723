"""A worker says how long the parts of its start took."""

from __future__ import annotations

from tests.integration.conftest import StartWorkerProcess


async def test_an_engine_that_knows_no_parts_has_one(start_worker_process: StartWorkerProcess) -> None:
    worker = await start_worker_process()
    told = await worker.logged("started in ")
    assert told["parts"].keys() == {"imports", "services", "engine"}
    assert told["message"].startswith(f"started in {sum(told['parts'].values()):.1f} s: imports ")
