"""Conversations on real vLLM: the prefix cache serves the next turn, and moving changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from tests.engine.conftest import ON_CPU

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.producer import Fleet
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.worker.engines.vllm.engine import VllmEngine
from inferfleet.worker.worker import Worker

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

PATIENCE_S = 120.0
LOADING_S = 600.0
"""Two engines at once load slowly on a busy machine."""
HERE, THERE = "here", "there"
BODY = {"temperature": 0, "max_tokens": 24}
TEXTS = (
    "Tell me of the sea, of the wind over it, and of the harbour where the ships lie in winter.",
    "And what of the lighthouse?",
    "Who keeps it?",
)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fleet(tiny_model):
    """Two workers with an engine each, in pools of their own, so that a turn can choose its worker."""
    with running_services(ServicesChoice.EMBEDDED) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        workers = []
        for pool in (HERE, THERE):
            settings = WorkerSettings(
                **urls,
                pool=pool,
                engine="vllm",
                http_host="127.0.0.1",
                http_port=0,
                drain_timeout_s=0,
            )
            engine = VllmEngine(model=tiny_model, max_running=4, engine_args=ON_CPU)
            worker = Worker(settings=settings, engine=engine)
            workers.append((worker, asyncio.create_task(worker.run())))
        async with Fleet.connect(ProducerSettings(**urls)) as fleet:
            async with asyncio.timeout(LOADING_S):
                while {one.phase for one in await fleet.workers()} != {WorkerPhase.READY}:
                    await asyncio.sleep(0.5)
            yield fleet
        for worker, running in workers:
            worker.stop()
            await asyncio.wait_for(running, PATIENCE_S)


async def talk(fleet, *pools):
    """Take a turn on each of these workers; returns the results and the history."""
    session = fleet.session(f"s-{uuid4()}")
    results = []
    for text, pool in zip(TEXTS, pools, strict=False):
        await fleet.declare_pool(pool)
        job = await session.send(text, body=BODY, pool=pool)
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
        results.append(result.raise_for_state())
    return results, await session.history()


async def test_the_second_turn_on_a_worker_reads_the_first_from_its_prefix_cache(fleet):
    results, _ = await talk(fleet, HERE, HERE)
    first, second = (result.usage for result in results)
    assert second.prompt_tokens > first.total_tokens
    # Whole blocks only: of what the first turn left, all but the last block.
    block = ON_CPU["block_size"]
    assert second.cached_tokens >= (first.prompt_tokens // block) * block > 0
    assert second.cached_tokens % block == 0


async def test_a_conversation_that_moved_is_the_same_as_one_that_stayed(fleet):
    _, stayed = await talk(fleet, HERE, HERE, HERE)
    _, moved = await talk(fleet, HERE, HERE, THERE)
    _, moved_twice = await talk(fleet, HERE, THERE, HERE)
    assert len(stayed) == 6
    assert moved == stayed
    assert moved_twice == stayed
