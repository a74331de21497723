"""The worker's HTTP port: what probes and Prometheus see of it, from its start to its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import redis.asyncio as aioredis
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorker,
    StartWorkerProcess,
    WorkerProcess,
    chat,
    eventually,
    slow_chat,
    until_running,
)

from inferfleet.producer import Fleet
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.names import worker_key
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import Generation, ModelIdentity

SAMPLES = (
    "inferfleet_jobs_finished_total",
    "inferfleet_jobs_retried_total",
    "inferfleet_tokens_generated_total",
    "inferfleet_queue_wait_seconds_count",
    "inferfleet_time_to_first_token_seconds_count",
    "inferfleet_generation_seconds_count",
    "inferfleet_engine_running",
    "inferfleet_engine_waiting",
    "inferfleet_worker_held",
    "inferfleet_engine_kv_cache_usage_ratio",
    "inferfleet_worker_ready",
)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def base_url(worker: WorkerProcess) -> str:
    """Where it serves: the port was free, and is in the log."""
    return f"http://127.0.0.1:{(await worker.logged('serving health'))['port']}"


async def probe(http: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, Any]]:
    async with http.get(url) as response:
        return response.status, await response.json()


async def samples(http: aiohttp.ClientSession, base: str) -> dict[str, float]:
    """Scrape; sums over labels, all of which name the pool."""
    async with http.get(f"{base}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["pool"].startswith("test-")
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


async def test_a_worker_is_ready_when_its_model_is_warm_and_not_before(
    fleet: Fleet, start_worker_process: StartWorkerProcess, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker_process("--engine-args", '{"load_s": 1.0}')
    base = await base_url(worker)
    status, heartbeat = await probe(http, f"{base}/health/ready")
    assert (status, heartbeat["phase"]) == (503, "loading")
    assert (await probe(http, f"{base}/health/live"))[0] == 200
    assert (await samples(http, base))["inferfleet_worker_ready"] == 0
    await worker.logged("ready")
    status, heartbeat = await probe(http, f"{base}/health/ready")
    assert (status, heartbeat["phase"]) == (200, "ready")
    assert (await probe(http, f"{base}/health/live"))[0] == 200
    assert (await samples(http, base))["inferfleet_worker_ready"] == 1


async def test_a_worker_takes_no_job_before_it_is_warm(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process("--engine-args", '{"load_s": 0.5}')
    job = await fleet.submit("early", pool=pool)
    ready = await worker.logged("ready")
    await fleet.wait(job, timeout_s=PATIENCE_S)
    started_at = (await fleet.get(job)).started_at
    assert started_at is not None
    assert started_at.strftime("%H:%M:%S,%f") >= ready["time"].split()[1]


async def test_a_draining_worker_is_alive_and_not_ready(
    fleet: Fleet, start_worker_process: StartWorkerProcess, http: aiohttp.ClientSession, pool: str
) -> None:
    worker = await start_worker_process(drain_timeout_s="10")
    base = await base_url(worker)
    job = await fleet.submit(slow_chat(tokens=40, step_s=0.05), pool=pool)
    await until_running(fleet, job)
    worker.signal(signal.SIGTERM)
    await worker.logged("draining")
    status, heartbeat = await probe(http, f"{base}/health/ready")
    assert (status, heartbeat["phase"]) == (503, "draining")
    assert (await probe(http, f"{base}/health/live"))[0] == 200
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).attempts == 1
    assert await worker.ended() == 0


async def test_the_metrics_count_what_was_done(
    fleet: Fleet, start_worker_process: StartWorkerProcess, http: aiohttp.ClientSession, pool: str
) -> None:
    worker = await start_worker_process("--engine-args", '{"speed": 0}', retry_base_s="0.05")
    base = await base_url(worker)
    jobs = await fleet.submit_many([chat(str(number), max_tokens=5) for number in range(10)], pool=pool)
    failing = {"fail": "engine_error", "fail_times": 1}
    jobs.append(await fleet.submit(chat("again", max_tokens=5, simulated=failing), pool=pool))
    results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    found = await samples(http, base)
    assert not set(SAMPLES) - found.keys()
    assert found["inferfleet_jobs_finished_total"] == 11
    assert found["inferfleet_jobs_retried_total"] == 1
    generated = sum(result.usage.completion_tokens for result in results)
    assert found["inferfleet_tokens_generated_total"] == generated == 55
    assert found["inferfleet_queue_wait_seconds_count"] == 11
    assert found["inferfleet_engine_running"] == 0


async def test_the_health_map_shows_where_a_worker_is_in_its_life_and_forgets_it_at_its_end(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    async def phases() -> dict[str, WorkerPhase]:
        return {entry.worker_id: entry.phase for entry in await fleet.workers() if entry.pool == pool}

    async def both_are_shown() -> bool:
        return await phases() == {f"{pool}-l": WorkerPhase.LOADING, f"{pool}-r": WorkerPhase.READY}

    loading = await start_worker_process("--engine-args", '{"load_s": 3600}', worker_id=f"{pool}-l")
    ready = await start_worker_process(worker_id=f"{pool}-r")
    await eventually(both_are_shown)
    assert [await worker.stop() for worker in (loading, ready)] == [0, 0]
    assert await phases() == {}


async def test_a_worker_can_be_told_to_drain_by_its_name(
    fleet: Fleet, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process(worker_id=f"{pool}-w")
    other = await start_worker_process(worker_id=f"{pool}-v")
    await asyncio.gather(worker.logged("ready"), other.logged("ready"))
    await fleet.drain(f"{pool}-w")
    assert await worker.ended() == 0
    job = await fleet.submit("hello", pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).worker_id == f"{pool}-v"


async def test_a_worker_with_frequent_heartbeats_does_not_count_as_gone_whenever_it_is_busy(
    start_worker_process: StartWorkerProcess, store: aioredis.Redis, pool: str
) -> None:
    await start_worker_process(worker_id=pool, heartbeat_interval_s="0.05")

    async def counts_for_a_second() -> bool:
        return await store.pttl(worker_key(pool)) > 1000

    await eventually(counts_for_a_second)


class HungVolume(SimulatedEngine):
    """An engine whose adapters are on a volume that does not answer."""

    def __init__(self) -> None:
        super().__init__(model="simulated", max_running=4, engine_args={})
        self.answers = asyncio.Event()
        self.asked = 0

    async def adapters(self) -> tuple[str, ...]:
        self.asked += 1
        await self.answers.wait()
        return ("french",)

    async def identify(self, generation: Generation) -> ModelIdentity:
        assert self.identity is not None
        return self.identity


async def test_a_worker_whose_adapters_cannot_be_listed_stays_on_the_map_and_asks_once(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    engine = HungVolume()
    await start_worker(engine, worker_id=pool, heartbeat_interval_s=0.05)

    async def heartbeat() -> Heartbeat | None:
        return next((entry for entry in await fleet.workers() if entry.worker_id == pool), None)

    async def seen_twice() -> bool:
        before, after = await heartbeat(), await heartbeat()
        return before is not None and after is not None and before.seen_at < after.seen_at

    async def lists_them() -> bool:
        found = await heartbeat()
        return found is not None and found.adapters == ("french",)

    for _ in range(3):
        await eventually(seen_twice)
    assert engine.asked == 1
    engine.answers.set()
    await eventually(lists_them)
