"""What others write to a worker's stdout and stderr stops no worker, whatever it is and whoever writes."""

from __future__ import annotations

import json
import signal
from typing import Any

from tests.integration.conftest import PATIENCE_S, StartWorkerProcess, WorkerProcess

from inferfleet.producer import Fleet

ENGINE = """
import ctypes, os, subprocess
from inferfleet.worker.engines.simulated import SimulatedEngine
answer = SimulatedEngine.generate
async def generate(self, generation):
    {}
    async for event in answer(self, generation):
        yield event
SimulatedEngine.generate = generate
"""


def foreign_lines(worker: WorkerProcess) -> list[str]:
    lines: list[dict[str, Any]] = [json.loads(line) for line in worker.log.splitlines()]
    return [line["message"] for line in lines if line["logger"].endswith("foreign_output")]


async def run_one(worker: WorkerProcess, fleet: Fleet, pool: str) -> None:
    await fleet.wait(await fleet.submit("hello", pool=pool), timeout_s=PATIENCE_S)
    assert await worker.stop() == 0


async def test_a_library_may_write_more_than_a_pipe_holds_while_it_holds_pythons_lock(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    write = "ctypes.PyDLL(None).write(2, (b'x' * 99 + b'\\n') * 2000, 200_000)"
    worker = await start_worker_process(preamble=ENGINE.format(write))
    await run_one(worker, fleet, pool)
    assert foreign_lines(worker) == ["x" * 99] * 2000


async def test_no_line_ends_the_log_of_the_lines_after_it(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    write = "subprocess.run(['printf', '\\\\0\\\\n']); os.write(2, b'after it\\n')"
    worker = await start_worker_process(preamble=ENGINE.format(write))
    await run_one(worker, fleet, pool)
    assert "after it" in foreign_lines(worker)


async def test_a_child_process_that_floods_the_log_neither_stops_the_worker_nor_fills_its_memory(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    flood = "subprocess.Popen(['timeout', '60', 'yes']); ctypes.PyDLL(None).write(2, b'mine\\n', 5)"
    worker = await start_worker_process(preamble=ENGINE.format(flood))
    await run_one(worker, fleet, pool)


async def test_a_worker_that_crashes_says_where(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process(preamble=ENGINE.format("os.abort()"))
    await fleet.submit("hello", pool=pool)
    assert await worker.ended() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in worker.log
    assert "in generate" in worker.log
