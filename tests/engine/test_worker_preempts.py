"""An urgent job takes the slot of a running answer, and that answer ends as if nothing had happened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.engine.conftest import ON_CPU
from tests.engine.test_worker_vllm import MAX_MODEL_LEN, PATIENCE_S, TOKENS

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.services.native import unavailable_reason
from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.producer.timeline import EventKind
from inferfleet.schemas import Job, Priority
from inferfleet.schemas.journal import TokensEntry
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

SLOTS = 2


def _chat(words: str, tokens: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": words}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def test_an_urgent_job_preempts_an_answer_of_vllm_which_then_reads_the_same(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model", max_model_len=MAX_MODEL_LEN)
    pool = f"p-{uuid4().hex[:8]}"
    choice = ServicesChoice.EMBEDDED if unavailable_reason() else ServicesChoice.NATIVE
    with running_services(choice) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        settings = WorkerSettings(
            **urls,
            pool=pool,
            engine="vllm",
            model=str(model),
            engine_args=ON_CPU | {"max_model_len": MAX_MODEL_LEN},
            max_running=SLOTS,
            look_ahead=0,
            preempt_min_run_s=0.0,
            http_host="127.0.0.1",
        )
        async with WorkerProcesses() as workers, Fleet.connect(ProducerSettings(**urls)) as fleet:
            await wait_until_ready([workers.start(settings)], timeout_s=PATIENCE_S)
            # Given answers in all of vLLM's slots, and a backlog that fills the prefetch
            bodies = [_chat(f"Tell me of the sea, at length: {number}.", TOKENS) for number in range(SLOTS)]
            jobs = await fleet.submit_many(bodies, pool=pool, priority=Priority.BATCH, stream=True)
            streams = [asyncio.create_task(_read(fleet, job)) for job in jobs]
            await asyncio.gather(*(_until_it_speaks(fleet, job) for job in jobs))
            waiting = await fleet.submit_many(
                [_chat(f"waiting {number}", 1) for number in range(SLOTS)],
                pool=pool,
                priority=Priority.BATCH,
            )

            # When urgent jobs come
            for number in range(3):
                body = _chat(f"urgent {number}", 20)
                urgent = await fleet.run(body, pool=pool, priority=Priority.URGENT, wait_timeout_s=PATIENCE_S)
                urgent.raise_for_state()

            # Then they take slots in which answers go on later, in the same attempts
            results = await fleet.wait_many([*jobs, *waiting], timeout_s=PATIENCE_S)
            stories = [[event.kind for event in await fleet.timeline(job)] for job in jobs]
            preempted = sum(story.count(EventKind.PREEMPTED) for story in stories)
            assert preempted > 0
            assert preempted == sum(story.count(EventKind.RESUMED) for story in stories)
            assert {result.raise_for_state().attempts for result in results} == {1}

            # And each answer, and its stream, is the one of a worker on which nothing preempts it
            again = await fleet.submit_many(bodies, pool=pool, priority=Priority.URGENT)
            undisturbed = await fleet.wait_many(again, timeout_s=PATIENCE_S)
            for result, alone, stream in zip(results[:SLOTS], undisturbed, streams, strict=True):
                assert result.text == alone.raise_for_state().text == await stream
                assert result.usage.completion_tokens == TOKENS


async def _until_it_speaks(fleet: Fleet, job: Job) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async for line in fleet.stream(job):
            if isinstance(line.entry, TokensEntry):
                return


async def _read(fleet: Fleet, job: Job) -> str:
    """Read a stream to its end. Return its text, of which no token was missing and none came twice."""
    words, offset = "", 0
    async with asyncio.timeout(PATIENCE_S):
        async for line in fleet.stream(job):
            if isinstance(line.entry, TokensEntry):
                assert line.entry.offset == offset
                offset += sum(len(chunk.token_ids) for chunk in line.entry.chunks)
                words += "".join(chunk.text for chunk in line.entry.chunks)
    assert offset == TOKENS
    return words
