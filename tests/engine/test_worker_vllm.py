"""A worker process dies in mid-answer, with vLLM in it or on a server; the next one finishes it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from tests.engine.conftest import ON_CPU
from tests.engine.vllm_server import running_server

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.services.native import unavailable_reason
from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.schemas.journal import RunningEntry, TokensEntry
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

PATIENCE_S = 300.0
SEEN_BEFORE_THE_DEATH = 60

# Seconds of generating: on a busy machine the death comes long after the tokens that call for it.
TOKENS = 4000
MAX_MODEL_LEN = 5120
ARGUMENTS = ON_CPU | {"max_model_len": MAX_MODEL_LEN}


async def test_an_answer_goes_on_where_a_killed_worker_left_it_and_reads_the_same(tmp_path):
    model = build_tiny_model(tmp_path / "model", max_model_len=MAX_MODEL_LEN)
    await _survives_a_death(engine="vllm", model=str(model), engine_args=ARGUMENTS)


async def test_an_answer_of_a_server_goes_on_where_a_killed_worker_left_it(tmp_path):
    model = build_tiny_model(tmp_path / "model", max_model_len=MAX_MODEL_LEN)
    async with running_server(str(model), ARGUMENTS, log=tmp_path / "log") as server:
        await _survives_a_death(engine="openai", base_url=f"{server.address}/v1")


async def _survives_a_death(**engine: Any) -> None:
    pool = f"p-{uuid4().hex[:8]}"
    body = {
        "messages": [{"role": "user", "content": "Tell me of the sea, at length."}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }
    choice = ServicesChoice.EMBEDDED if unavailable_reason() else ServicesChoice.NATIVE
    with running_services(choice) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        settings = WorkerSettings(
            **urls,
            pool=pool,
            **engine,
            max_running=4,
            lease_s=2.0,
            http_host="127.0.0.1",
        )
        async with WorkerProcesses() as workers, Fleet.connect(ProducerSettings(**urls)) as fleet:
            # Given a worker in the middle of a streamed answer
            first = workers.start(settings.model_copy(update={"worker_id": "first"}))
            await wait_until_ready([first], timeout_s=PATIENCE_S)
            job = await fleet.submit(body, pool=pool, stream=True)
            lines = []
            async with asyncio.timeout(PATIENCE_S):
                async for line in fleet.stream(job):
                    lines.append(line.entry)
                    if (
                        first.poll() is None
                        and isinstance(line.entry, TokensEntry)
                        and line.entry.offset > SEEN_BEFORE_THE_DEATH
                    ):
                        # When it is killed, and another one starts
                        await first.kill()
                        second = workers.start(settings.model_copy(update={"worker_id": "second"}))
                        await wait_until_ready([second], timeout_s=PATIENCE_S)
            result = (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()

            # Then the second went on behind the tokens that the first had written down
            attempts = [entry for entry in lines if isinstance(entry, RunningEntry)]
            assert [entry.worker_id for entry in attempts] == ["first", "second"]
            assert attempts[1].resumed_from > SEEN_BEFORE_THE_DEATH
            tokens = [entry for entry in lines if isinstance(entry, TokensEntry)]
            offset = 0
            for entry in tokens:
                assert entry.offset == offset
                offset += sum(len(chunk.token_ids) for chunk in entry.chunks)
            assert offset == TOKENS == result.usage.completion_tokens

            # And the answer is the one of a worker that nothing happened to
            undisturbed = await fleet.wait(await fleet.submit(body, pool=pool), timeout_s=PATIENCE_S)
            assert result.text == undisturbed.raise_for_state().text
            assert "".join(chunk.text for entry in tokens for chunk in entry.chunks) == result.text
