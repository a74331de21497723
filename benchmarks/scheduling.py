"""Who waits for whom: urgent jobs, batch jobs and tenants on one worker with the simulated engine.

    python benchmarks/scheduling.py             all
    python benchmarks/scheduling.py urgent      the first token of urgent jobs, full worker ÷ idle worker
    python benchmarks/scheduling.py oldest      the share of starts that batch jobs get beside a steady load
    python benchmarks/scheduling.py tenants     the wait beside a tenant with very many jobs ÷ alone
    python benchmarks/scheduling.py starts      when jobs start ÷ when they were expected to
    python benchmarks/scheduling.py warm        the share of sessions' prompt tokens that workers have cached
    python benchmarks/scheduling.py urgent --vllm-model FOLDER      on vLLM, which has to be installed

Times are ratios of one run. The engine models a GPU in real time, so what is measured beside it is our own
overhead and the order of jobs. ``urgent`` fails if an answer is not the one that the same job gets when
nothing preempts it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machine import benchmark_services

from inferfleet.gateway.admission import Admission
from inferfleet.gateway.api_keys import ApiKey, new_key_id, new_secret
from inferfleet.local.services import Services
from inferfleet.local.worker_processes import WorkerProcess, WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.producer.timeline import EventKind
from inferfleet.schemas import Job, Priority, Result
from inferfleet.schemas.journal import TokensEntry
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.wire.redis.connection import command_pipeline, redis_client
from inferfleet.wire.redis.shared_limits import SharedLimits
from inferfleet.wire.tasks import cancel_and_wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What ``urgent`` runs on, and how much. Batch jobs have ``long`` tokens, at least and at most."""

    engine: str = "simulated"
    model: str | None = None
    engine_args: dict[str, Any] = field(default_factory=dict[str, Any])
    slots: int = 16
    urgent: int = 60
    every_s: float = 0.5
    long: tuple[int, int] = (1500, 4500)
    short: int = 50

    @classmethod
    def on_vllm(cls, model: str) -> Load:
        """As much as a small model on two cores can do in two minutes."""
        args = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True}
        return cls(
            engine="vllm",
            model=model,
            engine_args=args,
            slots=4,
            urgent=20,
            every_s=3.0,
            long=(150, 450),
            short=8,
        )

    def chat(self, words: str, tokens: int) -> dict[str, Any]:
        """Return a request whose answer has so many tokens."""
        if self.engine == "simulated":
            return chat(words, tokens)
        said = [{"role": "user", "content": words}]
        return {"messages": said, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


SLOTS = 16
LOADING_S = 300.0
SHORT = 50
"""Tokens of the other jobs: about 0.35 s, so 45 jobs a second."""
STEADY_S = 30.0
WARM_WAIT_S = 2.0
DOCUMENT, QUESTION = "a word " * 1000, "why so? " * 20
"""1750 and 40 tokens."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*MEASUREMENTS, []], help="all by default")
    parser.add_argument("--vllm-model", metavar="FOLDER", help="measures urgent jobs on vLLM")
    asked = parser.parse_args()
    if asked.vllm_model:
        with benchmark_services() as services:
            await urgent(services, Load.on_vllm(asked.vllm_model))
        return
    chosen = asked.what or list(MEASUREMENTS)
    with benchmark_services() as services:
        for name in chosen:
            print(f"# {name}")
            await MEASUREMENTS[name](services)


@asynccontextmanager
async def one_worker(
    services: Services, pool: str, *, fair_shares: bool = False, **settings: Any
) -> AsyncGenerator[Fleet]:
    """A fleet of one worker with the simulated engine."""
    shared: dict[str, Any] = {
        "amqp_url": services.amqp_url,
        "redis_url": services.redis_url,
        "fair_shares": fair_shares,
    }
    settings = {"engine": "simulated", "max_running": SLOTS, **settings}
    worker = WorkerSettings(**shared, pool=pool, **settings)
    async with WorkerProcesses() as workers, Fleet.connect(ProducerSettings(**shared)) as fleet:
        await wait_until_ready([workers.start(worker)], timeout_s=LOADING_S)
        yield fleet


def chat(words: str, tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}], "simulated": {"tokens": tokens}}


async def urgent(services: Services, load: Load = Load()) -> None:
    """Urgent jobs at random times on an idle and on a full worker: about two a second, on vLLM fewer."""
    pool = "urgent"
    with tempfile.TemporaryDirectory(prefix="inferfleet-scheduling-") as folder:
        log = Path(folder) / "tokens"
        simulated = load.engine == "simulated"
        settings: dict[str, Any] = {
            "engine": load.engine,
            "engine_args": {"token_log": str(log)} if simulated else load.engine_args,
            "max_running": load.slots,
        }
        if load.model is not None:
            settings["model"] = load.model
        async with one_worker(services, pool, **settings) as fleet:
            idle = await first_tokens_s(fleet, pool, load)
            chance = random.Random(2)
            bodies = [
                load.chat(f"batch {number}", chance.randint(*load.long)) for number in range(3 * load.slots)
            ]
            jobs = await fleet.submit_many(bodies, pool=pool, priority=Priority.BATCH)
            await asyncio.gather(*(first_token(fleet, job) for job in jobs[: load.slots]))
            # From now on they may be preempted.
            await asyncio.sleep(WorkerSettings.model_fields["preempt_min_run_s"].default)
            full = await first_tokens_s(fleet, pool, load)
            results = [result.raise_for_state() for result in await fleet.wait_many(jobs)]
            generated = sum(map(int, log.read_text().split())) if simulated else 0
            stories = [[event.kind for event in await fleet.timeline(job)] for job in jobs]
            # Nothing is more urgent now, so these run to their ends.
            again = await fleet.wait_many(await fleet.submit_many(bodies, pool=pool, priority=1))
    answers = sum(result.usage.completion_tokens for result in results) + 2 * load.urgent * load.short
    differ = sum(result.text != alone.text for result, alone in zip(results, again, strict=True))
    print(
        f"first token, ms, median and p99: idle {shown(idle)}, full {shown(full)}\n"
        f"full ÷ idle: median {statistics.median(full) / statistics.median(idle):.2f}, "
        f"p99 {p99(full) / p99(idle):.2f}\n"
        f"{sum(story.count(EventKind.PREEMPTED) for story in stories)} preemptions, "
        f"{differ} of {len(jobs)} answers differ"
        + (f", {generated / answers - 1:.2%} of all tokens wasted" if simulated else "")
    )
    if differ and simulated:
        raise SystemExit(1)


async def first_tokens_s(fleet: Fleet, pool: str, load: Load) -> list[float]:
    chance = random.Random(1)

    async def one(number: int) -> float:
        body = load.chat(f"urgent {number}", load.short)
        began = time.perf_counter()
        job = await fleet.submit(body, pool=pool, priority=9, stream=True)
        await first_token(fleet, job)
        taken = time.perf_counter() - began
        await fleet.wait(job)
        return taken

    waits: list[asyncio.Task[float]] = []
    for number in range(load.urgent):
        waits.append(asyncio.create_task(one(number)))
        await asyncio.sleep(chance.uniform(0, 2 * load.every_s))
    return await asyncio.gather(*waits)


async def first_token(fleet: Fleet, job: Job) -> None:
    async for line in fleet.stream(job):
        if isinstance(line.entry, TokensEntry):
            return


async def oldest(services: Services) -> None:
    """Batch jobs wait while there are always more jobs of the priority ``high`` than the worker can run."""
    for share in (0.05, 0.0):
        pool = f"oldest-{share}"
        async with one_worker(services, pool, oldest_share=share) as fleet:
            first = [chat(f"first {number}", SHORT) for number in range(4 * SLOTS)]
            await fleet.submit_many(first, pool=pool, priority=Priority.HIGH)
            batch = await fleet.submit_many(
                [chat(f"batch {number}", SHORT) for number in range(300)], pool=pool, priority=Priority.BATCH
            )
            until = time.monotonic() + STEADY_S
            counts = await asyncio.gather(*(keep_busy(fleet, pool, until) for _ in first))
            high = len(first) + sum(counts)
            records = (await fleet.get_many(batch)).values()
            batch_ended = sum(record is not None and record.state.terminal for record in records)
            of_all = batch_ended / (batch_ended + high)
            print(f"share {share:.0%}: {batch_ended} batch jobs beside {high}, {of_all:.1%} of all")
            for job in batch:
                await fleet.cancel(job)


async def keep_busy(fleet: Fleet, pool: str, until: float) -> int:
    """Submit one job after the other. Return how many."""
    jobs = 0
    while time.monotonic() < until:
        await fleet.run(chat("high", SHORT), pool=pool, priority=Priority.HIGH)
        jobs += 1
    return jobs


async def tenants(services: Services) -> None:
    """One tenant sends ten jobs a second; the other one has submitted as many as run in two minutes."""
    alone = await waits_s(services, "alone", flood=0)
    print(f"wait from submit to end, ms, median and p99: alone {shown(alone)}")
    how: dict[str, dict[str, bool]] = {
        "guarantees": {"guaranteed": True},
        "fair-shares": {"fair_shares": True},
        "neither": {},
    }
    for name, options in how.items():
        beside = await waits_s(services, name, flood=5_000, **options)
        print(f"beside 5,000 jobs, {name}: {shown(beside)}; p99 ÷ alone {p99(beside) / p99(alone):.2f}")


async def waits_s(
    services: Services, pool: str, *, flood: int, guaranteed: bool = False, fair_shares: bool = False
) -> list[float]:
    pipeline = command_pipeline(redis_client(services.redis_url), patience_s=10.0)
    sending = asyncio.create_task(pipeline.run())
    async with one_worker(services, pool, fair_shares=fair_shares) as fleet:
        limits = SharedLimits(pipeline, ttl_s=3600)
        # A job counts as about 300 tokens: 2,000 jobs a minute fit in.
        heavy, light = (
            tenant(fleet, f"{pool}.{name}", limits, guaranteed=600_000 if guaranteed else None)
            for name in ("heavy", "light")
        )
        made = [heavy.make(chat(f"heavy {number}", SHORT), pool=pool) for number in range(flood)]
        submitted = await heavy.submit_many(made) if made else []
        taken: list[asyncio.Task[float]] = []

        async def one(number: int) -> float:
            began = time.perf_counter()
            job = await light.submit(chat(f"light {number}", SHORT), pool=pool)
            await fleet.wait(job, timeout_s=600)
            return time.perf_counter() - began

        for number in range(int(STEADY_S * 10)):
            taken.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0.1)
        waits = await asyncio.gather(*taken)
        for job in submitted:
            await fleet.cancel(job)
    await cancel_and_wait(sending)
    return waits


def tenant(fleet: Fleet, name: str, limits: SharedLimits, *, guaranteed: int | None) -> TenantFleet:
    key = ApiKey(
        id=(key_id := new_key_id()),
        tenant=name,
        secrets=(new_secret(key_id)[1],),
        guaranteed_tokens_per_minute=guaranteed,
        created_at=datetime.now(UTC),
    )
    policy = Admission(key, limits, limited=lambda _: None, demoted=lambda: None)
    return TenantFleet(fleet, name, policy=policy)


async def starts(services: Services) -> None:
    """Blocks of short chats and of long reports wait; all are asked when they may start, and then run."""
    pool = "starts"
    chance = random.Random(3)

    def chats(count: int) -> list[dict[str, Any]]:
        return [
            {**chat(f"chat {number}", 1 + int(chance.expovariate(1 / 40))), "max_tokens": 256}
            for number in range(count)
        ]

    def reports(count: int) -> list[dict[str, Any]]:
        return [
            {**chat(f"report {number}", chance.randint(500, 1500)), "max_tokens": 2048}
            for number in range(count)
        ]

    async with one_worker(services, pool) as fleet:
        warm = [*chats(150), *reports(30)]
        chance.shuffle(warm)
        await fleet.wait_many(await fleet.submit_many(warm, pool=pool))
        blocks = [*reports(60), *chats(240), *reports(60), *chats(240)]
        jobs = await fleet.submit_many(blocks, pool=pool)
        # Their worker has told how fast it is, and is busy again.
        await asyncio.sleep(2 * WorkerSettings.model_fields["heartbeat_interval_s"].default)
        asked = jobs[SLOTS * 2 :: 4]
        at = datetime.now(UTC)
        positions = await asyncio.gather(*(fleet.position(job) for job in asked))
        await fleet.wait_many(jobs)
        records = await fleet.get_many(asked)
    by_work: list[float] = []
    by_jobs: list[float] = []
    for job, position in zip(asked, positions, strict=True):
        record = records[job.id]
        if record is None or record.started_at is None or not position.starts_in_s or position.ahead is None:
            continue
        waited_s = (record.started_at - at).total_seconds()
        by_work.append(position.starts_in_s / waited_s)
        by_jobs.append((position.ahead - SLOTS + 1) / position.finished_per_s / waited_s)
    for name, ratios in (("by work", by_work), ("by the number of jobs", by_jobs)):
        error = statistics.median(abs(ratio - 1) for ratio in ratios)
        close = sum(0.5 <= ratio <= 2 for ratio in ratios) / len(ratios)
        print(
            f"expected {name}: median error {error:.0%}, {close:.0%} of {len(ratios)} within a factor of two"
        )


async def warm(services: Services) -> None:
    """Sessions on eight workers beside other jobs, with and without waiting for the worker that has them.

    A worker's cache has room for half as many sessions again as their share.
    """
    for wait_s in (WARM_WAIT_S, 0.0):
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        pool = f"warm-{wait_s:g}"
        worker = WorkerSettings(
            **urls,
            pool=pool,
            engine="simulated",
            engine_args={"prefix_caching": True, "kv_cache_tokens": 36_000, "max_model_len": 8192},
            max_running=SLOTS,
            look_ahead=2,
            lease_s=1.0,
            warm_wait_s=wait_s,
        )
        async with WorkerProcesses() as workers, Fleet.connect(ProducerSettings(**urls)) as fleet:
            started = {
                worker_id: workers.start(worker.model_copy(update={"worker_id": worker_id}))
                for worker_id in (f"{pool}-{number}" for number in range(8))
            }
            await wait_until_ready([*started.values()], timeout_s=LOADING_S)
            began = time.monotonic()
            talking = asyncio.gather(*(talk(fleet, pool, number) for number in range(64)))
            beside = [asyncio.create_task(keep_busy_beside(fleet, pool, talking)) for _ in range(16)]
            spoken = [turn for turns in await talking for turn in turns]
            took_s = time.monotonic() - began
            others = sum(await asyncio.gather(*beside))
            cached = sum(result.usage.cached_tokens for result, _ in spoken)
            prompts = sum(result.usage.prompt_tokens for result, _ in spoken)
            print(
                f"wait {wait_s:g} s: {cached / prompts:.1%} of {prompts:,} prompt tokens cached; "
                f"{len(spoken) / took_s:.1f} turns/s, submit to end {shown([s for _, s in spoken])} ms, "
                f"median and p99; {others / took_s:.1f} other jobs/s"
            )
            if wait_s:
                await killed(fleet, pool, started)


async def keep_busy_beside(fleet: Fleet, pool: str, work: asyncio.Future[Any]) -> int:
    """Run one job after the other until the work is done. Return how many."""
    jobs = 0
    while not work.done():
        await fleet.run(chat("other", SHORT), pool=pool)
        jobs += 1
    return jobs


async def talk(fleet: Fleet, pool: str, number: int) -> list[tuple[Result, float]]:
    """Take twelve turns, the first with a document. Return the results, and how long each took to its end."""
    session, chance = fleet.session(f"{pool}-{number}"), random.Random(number)
    turns: list[tuple[Result, float]] = []
    for _ in range(12):
        await asyncio.sleep(chance.uniform(0, 2))
        turns.append(await turn(fleet, session, pool, QUESTION if turns else f"{number} " + DOCUMENT))
    return turns


async def turn(fleet: Fleet, session: Session, pool: str, words: str) -> tuple[Result, float]:
    began = time.perf_counter()
    job = await session.send(words, pool=pool, body={"simulated": {"tokens": SHORT}})
    result = (await fleet.wait(job)).raise_for_state()
    return result, time.perf_counter() - began


async def killed(fleet: Fleet, pool: str, workers: dict[str, WorkerProcess]) -> None:
    """Kill the worker of a session: its next turn waits, and is computed anew; the one after that is not."""
    session = fleet.session(f"{pool}-killed")
    await turn(fleet, session, pool, DOCUMENT)
    last, last_s = await turn(fleet, session, pool, QUESTION)
    await workers[last.worker_id or ""].kill()
    turns = {"before": (last, last_s)}
    for name in ("next", "one after"):
        turns[name] = await turn(fleet, session, pool, QUESTION)
    for name, (result, took_s) in turns.items():
        cached = result.usage.cached_tokens / result.usage.prompt_tokens
        print(f"its worker killed, the turn {name}: {cached:.0%} cached, {took_s * 1000:.0f} ms")


def p99(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100)[-1]


def shown(taken: list[float]) -> str:
    return f"{statistics.median(taken) * 1000:.0f} and {p99(taken) * 1000:.0f}"


MEASUREMENTS = {"urgent": urgent, "oldest": oldest, "tenants": tenants, "starts": starts, "warm": warm}

if __name__ == "__main__":
    asyncio.run(main())
