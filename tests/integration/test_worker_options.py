"""The options of ``inferfleet worker``, also as variables, and what becomes of wrong ones."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    RunCommand,
    StartWorkerProcess,
    answer_to,
    slow_chat,
    until_running,
)

from inferfleet.producer import Fleet


async def test_options_win_over_variables_and_variables_over_defaults(
    start_worker_process: StartWorkerProcess, fleet: Fleet, pool: str
) -> None:
    worker = await start_worker_process(
        *("--worker-id", f"{pool}-option", "--model", "from-the-option"),
        worker_id=f"{pool}-variable",
        model="from-the-variable",
        engine_args='{"speed": 0}',
        heartbeat_interval_s="0.1",
    )
    await worker.logged("ready")
    job = await fleet.submit("hello", pool=pool)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.worker_id == f"{pool}-option"
    assert (result.response or {})["model"] == "from-the-option"
    (heartbeat,) = [entry for entry in await fleet.workers() if entry.pool == pool]
    assert (heartbeat.worker_id, heartbeat.model) == (f"{pool}-option", "from-the-option")


async def test_max_running_is_the_size_of_the_batch(
    start_worker_process: StartWorkerProcess, fleet: Fleet, pool: str
) -> None:
    worker = await start_worker_process("--max-running", "3", "--look-ahead", "0", drain_timeout_s="0")
    jobs = await fleet.submit_many(
        [slow_chat(str(number), tokens=300, step_s=0.02) for number in range(5)], pool=pool
    )
    await asyncio.gather(*(until_running(fleet, job) for job in jobs[:3]))
    states = [record.state for record in (await fleet.get_many(jobs)).values() if record is not None]
    assert (states.count("running"), states.count("queued")) == (3, 2)  # type: ignore[arg-type]
    assert await worker.stop() == 0


async def test_an_engine_argument_that_does_not_exist_is_exit_code_2(
    start_worker_process: StartWorkerProcess,
) -> None:
    worker = await start_worker_process("--engine-args", '{"sped": 1}')
    assert await worker.ended() == 2, worker.log
    assert "the simulated engine has no argument 'sped' (did you mean 'speed'?); it has load_s" in worker.log
    assert "Traceback" not in worker.log


async def test_a_port_that_is_taken_is_exit_code_2_and_says_what_to_do(
    start_worker_process: StartWorkerProcess,
) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        worker = await start_worker_process("--http-port", str(port))
        assert await worker.ended() == 2, worker.log
    assert f"cannot listen on 0.0.0.0:{port}" in worker.log
    assert "--http-port" in worker.log
    assert "Traceback" not in worker.log


async def test_a_pool_whose_queue_has_other_arguments_is_exit_code_2(
    start_worker_process: StartWorkerProcess, connect: Connect, pool: str
) -> None:
    async with connect(queue_max_length=7) as limited:
        await limited.declare_pool(pool)
        worker = await start_worker_process()
        assert await worker.ended() == 2, worker.log
        assert f"the queue inferfleet.jobs.{pool} exists with other arguments" in worker.log
        assert "Traceback" not in worker.log
        agreeing = await start_worker_process(queue_max_length="7")
        job = await limited.submit("hello", pool=pool)
        assert (await limited.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
        assert await agreeing.stop() == 0


async def test_an_engine_that_dies_ends_the_worker_with_code_1_and_its_jobs_go_on_elsewhere(
    start_worker_process: StartWorkerProcess, fleet: Fleet, pool: str
) -> None:
    worker = await start_worker_process("--max-running", "8")
    innocent = await fleet.submit(slow_chat(tokens=40, step_s=0.02), pool=pool)
    await until_running(fleet, innocent)
    body = slow_chat("killer", tokens=40, step_s=0.02, kill_engine=True, after_tokens=3)
    killer = await fleet.submit(body, pool=pool, max_attempts=1)
    assert await worker.ended() == 1
    assert "the engine died" in worker.log
    assert "Traceback" not in worker.log
    await start_worker_process()
    assert (await fleet.wait(innocent, timeout_s=PATIENCE_S)).text == answer_to(innocent)
    result = await fleet.wait(killer, timeout_s=PATIENCE_S)
    assert result.error is not None
    assert result.error.code == "too_many_attempts"


async def test_a_worker_without_its_extra_says_what_to_install(
    inferfleet: RunCommand, start_worker_process: StartWorkerProcess
) -> None:
    worker = await start_worker_process(preamble="import sys; sys.modules['aiohttp'] = None")
    assert await worker.ended() == 2, worker.log
    assert "`inferfleet worker` needs the package 'aiohttp': pip install 'inferfleet[worker]'" in worker.log
    assert "Traceback" not in worker.log


async def test_drain_names_a_worker_that_lives(
    inferfleet: RunCommand, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process(worker_id=f"{pool}-w")
    await worker.logged("ready")
    ended = await inferfleet("worker", "drain", f"{pool}-nobody")
    assert (ended.code, ended.out) == (2, "")
    assert f"no worker '{pool}-nobody' is alive" in ended.err
    assert (await inferfleet("worker", "drain", f"{pool}-w")).code == 0
    assert await worker.ended() == 0


@pytest.mark.parametrize("engine", ["simulated", "openai"])
async def test_adapters_for_an_engine_that_has_none_are_exit_code_2(
    start_worker_process: StartWorkerProcess, tmp_path: Path, engine: str
) -> None:
    worker = await start_worker_process(
        "--engine", engine, base_url="http://127.0.0.1:1/v1", adapters_dir=str(tmp_path)
    )
    assert await worker.ended() == 2, worker.log
    assert f"INFERFLEET_ADAPTERS_DIR: the engine '{engine}' has no LoRA adapters" in worker.log
    assert "Traceback" not in worker.log
