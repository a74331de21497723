"""What a worker writes to its log and its spans, and what it must not: prompts and answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorkerProcess,
    answer_to,
    chat,
    slow_chat,
    until_running,
)
from tests.integration.tracing.collector import Collector, collecting

from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, JobState
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.span_names import JOB_ID

SENTINEL = "xyzzy-7731-plugh"
"""A word that appears nowhere but in prompts."""

BROKEN_ENGINE = """
from inferfleet.schemas import FailureCode
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import GenerationError
answer = SimulatedEngine.generate
async def generate(self, generation):
    if "refuse it" in str(generation.body):
        raise GenerationError(FailureCode.INVALID_REQUEST, f"not allowed: {generation.body}")
    if "break it" in str(generation.body):
        try:
            int(str(generation.body))
        except ValueError as error:
            raise RuntimeError(f"cannot tokenize {generation.body}") from error
    async for event in answer(self, generation):
        yield event
SimulatedEngine.generate = generate
"""
"""An engine whose errors quote the prompt, as those of libraries do."""


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_prompt_and_no_answer_is_in_the_log_or_a_span_whatever_becomes_of_the_job(
    fleet: Fleet,
    foreign: ForeignClient,
    start_worker_process: StartWorkerProcess,
    environment: dict[str, str],
    collector: Collector,
    pool: str,
    log_format: str,
) -> None:
    environment |= collector.environment
    worker = await start_worker_process(
        preamble=BROKEN_ENGINE,
        tracing="true",
        log_level="DEBUG",
        log_format=log_format,
        retry_base_s="0.05",
        drain_timeout_s="0",
    )
    good = await fleet.submit(f"{SENTINEL} good", pool=pool, stream=True)
    jobs = [
        good,
        await fleet.submit(f"{SENTINEL} break it", pool=pool, max_attempts=2),
        await fleet.submit(f"{SENTINEL} refuse it", pool=pool),
        await fleet.submit(chat(SENTINEL, simulated={"fail": "engine_error"}), pool=pool, max_attempts=2),
        await fleet.submit(chat(SENTINEL, simulated={"fail": "invalid_request"}), pool=pool),
        await fleet.submit(chat(SENTINEL, logprobs=True), pool=pool),
        await fleet.submit(slow_chat(SENTINEL, tokens=500, step_s=0.02), pool=pool, timeout_s=0.05),
        await fleet.submit(SENTINEL, pool=pool, endpoint=Endpoint.EMBEDDINGS),
        await fleet.submit({"query": SENTINEL, "documents": [SENTINEL]}, pool=pool, endpoint=Endpoint.RERANK),
    ]
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    assert [result.state is JobState.SUCCEEDED for result in results] == [True, *[False] * 6, True, True]
    for garbage in (
        SENTINEL,
        json.dumps({"id": SENTINEL, "body": chat(SENTINEL)}),
        json.dumps({"id": new_job_id(), "body": SENTINEL}),
        json.dumps({"id": new_job_id(), "endpoint": SENTINEL, "body": chat(SENTINEL)}),
        json.dumps({"id": new_job_id(), "body": chat(SENTINEL, role=SENTINEL)})[:-9],
    ):
        await foreign.publish(garbage.encode(), headers={"note": SENTINEL})
        await foreign.dead_letter()
    await foreign.channel.basic_publish(
        json.dumps({"kind": SENTINEL, "job_id": SENTINEL}).encode(), exchange="inferfleet.control"
    )
    cancelled = await fleet.submit(slow_chat(SENTINEL, tokens=500, step_s=0.02), pool=pool)
    await until_running(fleet, cancelled)
    await fleet.cancel(cancelled)
    await fleet.wait(cancelled, timeout_s=PATIENCE_S)
    handed_over = await fleet.submit(slow_chat(SENTINEL, tokens=500, step_s=0.02), pool=pool)
    await until_running(fleet, handed_over)
    assert await worker.stop() == 0
    assert "RuntimeError" in worker.log, "the errors themselves are there"
    assert "ValueError" in worker.log
    assert good.id in worker.log
    exported = b"".join(received.body for received in collector.receiver.received).decode(errors="replace")
    assert {job.id for job in (*jobs, cancelled, handed_over)} <= {
        span.attributes.get(JOB_ID) for span in collector.spans
    }
    for words in (SENTINEL, answer_to(good), answer_to(good)[:40]):
        assert words not in worker.log
        assert words not in exported


async def test_prompts_are_in_the_log_if_somebody_asks_for_them(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process(log_prompts="true")
    job = await fleet.submit(SENTINEL, pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    line = await worker.logged("starting job")
    assert (line["job_id"], line["body"]) == (job.id, job.body)


async def test_every_line_is_one_json_object_with_the_workers_name(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process("--worker-id", "w-7")
    job = await fleet.submit("hello", pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    assert await worker.stop() == 0
    lines = [json.loads(line) for line in worker.log.splitlines()]
    assert {line["worker_id"] for line in lines} == {"w-7"}
    assert [line["message"] for line in lines if line.get("job_id") == job.id] == ["job succeeded"]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()


OTHERS = """
import os, subprocess
from inferfleet.worker.engines.simulated import SimulatedEngine
answer = SimulatedEngine.generate
async def generate(self, generation):
    os.write(1, b"[Gloo] rank 0 is connected\\n")
    os.write(2, b"loading  10%\\rloading 100%\\n\\xff\\n")
    subprocess.run(["sh", "-c", "echo '(EngineCore pid=7) WARNING 11-26 12:00:00 [core.py:12] slow' >&2"])
    subprocess.run(["sh", "-c", "printf '\\033[31mINFO 11-26 12:00:00 [core.py:13] red\\033[0m'"])
    async for event in answer(self, generation):
        yield event
SimulatedEngine.generate = generate
"""
"""An engine that writes to stdout and stderr, as vLLM, its engine core and libraries in C++ do."""


async def test_what_libraries_and_child_processes_write_is_a_json_line_too(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process(preamble=OTHERS)
    await fleet.wait(await fleet.submit("hello", pool=pool), timeout_s=PATIENCE_S)
    assert await worker.stop() == 0
    lines = [json.loads(line) for line in worker.log.splitlines()]
    foreign = [line for line in lines if line["logger"].endswith("foreign_output")]
    assert [(line["level"], line["message"]) for line in foreign] == [
        ("INFO", "[Gloo] rank 0 is connected"),
        ("INFO", "loading 100%"),
        ("INFO", "\\xff"),
        ("WARNING", "(EngineCore pid=7) [core.py:12] slow"),
        ("INFO", "[core.py:13] red"),
    ]


async def test_a_line_about_a_job_names_its_tenant_session_and_attempt(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process(retry_base_s="0.05")
    failing = chat("hello", simulated={"fail": "engine_error"})
    job = await fleet.submit(failing, pool=pool, max_attempts=2, tenant="acme", session_id="talk")
    await fleet.wait(job, timeout_s=PATIENCE_S)
    assert await worker.stop() == 0
    lines = [json.loads(line) for line in worker.log.splitlines()]
    of_job = [line for line in lines if line.get("job_id") == job.id]
    assert {(line["tenant"], line["session_id"]) for line in of_job} == {("acme", "@acme/talk")}
    assert [(line["message"], line["attempt"]) for line in of_job] == [
        ("requeueing a job", 1),
        ("message dead-lettered", 2),
        ("job failed", 2),
    ]
