"""Jobs that a worker answers with another server: what they say, how they fail, and what is not resumed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    assert_whole,
    chat,
    journal_of,
    slow_chat,
    text_of,
    until_tokens,
)
from tests.integration.remote_engine.conftest import MakeEngine, Upstream
from tests.integration.test_model_identity import since_the_restart

from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, FailureCode, JobState
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.journal import RestartedEntry, RestartReason
from inferfleet.worker.engines.simulated import expected_response
from inferfleet.worker.ports import EngineDeadError

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "body",
    [chat("hello"), chat("hello", tools=[TOOL], tool_choice="required"), chat("two", n=2)],
    ids=["text", "tool", "choices"],
)
async def test_a_chat_is_streamed_and_ends_as_it_does_at_the_server(
    fleet: Fleet,
    start_worker: StartWorker,
    upstream: Upstream,
    engine_on: MakeEngine,
    store: aioredis.Redis,
    pool: str,
    body: dict[str, Any],
) -> None:
    gateway = await upstream()
    await start_worker(engine_on(gateway))
    job = await fleet.submit(body, pool=pool, stream=True)

    result = (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()

    assert result.response is not None
    theirs = expected_response(job.endpoint, job.body, job_id=job.id, model="simulated", created=0)
    assert result.response["choices"] == theirs["choices"]
    entries = await journal_of(store, job)
    assert_whole(entries)
    assert text_of(entries) == result.text
    assert result.usage.prompt_tokens > 0


@pytest.mark.parametrize("endpoint", [endpoint for endpoint in Endpoint if not ENDPOINTS[endpoint].generated])
async def test_other_endpoints_are_answered_in_one_piece(
    fleet: Fleet,
    start_worker: StartWorker,
    upstream: Upstream,
    engine_on: MakeEngine,
    pool: str,
    endpoint: Endpoint,
) -> None:
    await start_worker(engine_on(await upstream()))
    job = await fleet.submit(dict(ENDPOINTS[endpoint].example), endpoint=endpoint, pool=pool)

    result = (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()

    assert result.response is not None
    assert result.response["model"] == "simulated"
    assert result.usage.prompt_tokens > 0


async def test_a_request_that_the_server_refuses_fails_with_its_words(
    fleet: Fleet, start_worker: StartWorker, upstream: Upstream, engine_on: MakeEngine, pool: str
) -> None:
    gateway = await upstream()
    await start_worker(engine_on(gateway))
    job = await fleet.submit(chat("a secret prompt", logprobs=True), pool=pool)

    result = await fleet.wait(job, timeout_s=PATIENCE_S)

    assert result.state is JobState.FAILED
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    assert "logprobs" in result.error.message
    assert "secret" not in result.error.message


async def test_a_failure_of_the_server_is_retried(
    fleet: Fleet, start_worker: StartWorker, upstream: Upstream, engine_on: MakeEngine, pool: str
) -> None:
    gateway = await upstream()
    await start_worker(engine_on(gateway))
    job = await fleet.submit(
        chat(simulated={"fail": "engine_error", "after_tokens": 2}), pool=pool, max_attempts=2
    )

    result = await fleet.wait(job, timeout_s=PATIENCE_S)

    assert result.error is not None
    assert result.error.code is FailureCode.TOO_MANY_ATTEMPTS
    assert "the last failed with engine_error" in result.error.message
    assert result.attempts == 2


async def test_an_answer_of_a_server_without_token_ids_begins_again(
    fleet: Fleet,
    start_worker: StartWorker,
    upstream: Upstream,
    engine_on: MakeEngine,
    store: aioredis.Redis,
    pool: str,
) -> None:
    gateway = await upstream()
    first = await start_worker(engine_on(gateway))
    job = await fleet.submit(slow_chat(tokens=60, step_s=0.02), pool=pool, stream=True)
    await until_tokens(fleet, job, 5)
    await first.stop()
    await start_worker(engine_on(gateway))

    result = (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()

    assert result.text == answer_to(job)
    entries = await journal_of(store, job)
    (restarted,) = [entry for entry in entries if isinstance(entry, RestartedEntry)]
    assert restarted.reason is RestartReason.NOT_RESUMABLE
    assert text_of(since_the_restart(entries)) == answer_to(job)


async def test_a_cancelled_job_is_cancelled_at_the_server(
    fleet: Fleet, start_worker: StartWorker, upstream: Upstream, engine_on: MakeEngine, pool: str
) -> None:
    server = await upstream()
    worker = await start_worker(engine_on(server))
    job = await fleet.submit(slow_chat(tokens=100_000, step_s=0.01), pool=pool, stream=True)
    await until_tokens(fleet, job, 2)

    await fleet.cancel(job)

    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.CANCELLED
    async with asyncio.timeout(PATIENCE_S):
        while worker.engine.stats().running or server.worker.engine.stats().running:
            await asyncio.sleep(0.01)


async def test_when_the_only_server_is_gone_the_worker_gives_its_jobs_back_and_ends(
    fleet: Fleet, start_worker: StartWorker, upstream: Upstream, engine_on: MakeEngine, pool: str
) -> None:
    gateway = await upstream()
    first = await start_worker(engine_on(gateway))
    job = await fleet.submit(slow_chat(tokens=200, step_s=0.02), pool=pool, stream=True)
    await until_tokens(fleet, job, 2)

    await gateway.stop()
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(first.running, PATIENCE_S)
    await start_worker()

    result = (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()
    assert result.text == answer_to(job)


async def test_the_command_takes_several_addresses_and_waits_for_a_server(
    fleet: Fleet,
    start_worker_process: StartWorkerProcess,
    upstream: Upstream,
    pool: str,
) -> None:
    gateway = await upstream()
    port = int(gateway.url.rpartition(":")[2])
    await gateway.stop()
    urls = ["--base-url", "http://127.0.0.1:9/v1", "--base-url", f"{gateway.url}/v1"]
    worker = await start_worker_process("--engine", "openai", *urls, "--model", "simulated")
    await worker.logged("waiting for a server")

    await upstream(http_port=port)

    ready = await worker.logged("ready")
    assert ready["model"] == "simulated"
    assert worker.log.count("waiting for a server") == 1
    assert (await worker.logged("the server answers"))["message"].endswith("are not resumed")
    job = await fleet.submit(chat(), pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state().text == answer_to(job)
