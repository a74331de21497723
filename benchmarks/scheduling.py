"""Who waits for whom: urgent jobs, batch jobs and tenants on one worker with the simulated engine.

    python benchmarks/scheduling.py             all
    python benchmarks/scheduling.py urgent      the first token of urgent jobs, full worker ÷ idle worker
    python benchmarks/scheduling.py oldest      the share of starts that batch jobs get beside a steady load
    python benchmarks/scheduling.py tenants     the wait beside a tenant with very many jobs ÷ alone
    python benchmarks/scheduling.py starts      when jobs start ÷ when they were expected to
    python benchmarks/scheduling.py warm        the share of sessions' prompt tokens that workers have cached
    python benchmarks/scheduling.py prompts     the same of jobs without a session that share documents
    python benchmarks/scheduling.py urgent --vllm-model FOLDER      on vLLM, which has to be installed

Times are ratios of one run. The engine models a GPU in real time, so what is measured beside it is our own
overhead and the order of jobs. ``urgent`` fails if an answer is not the one that the same job gets when
nothing preempts it. On vLLM it needs ``VLLM_CPU_KVCACHE_SPACE=1`` on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
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
from inferfleet.schemas import Job, Priority, Result, Usage
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
    preempt_limit: int = WorkerSettings.model_fields["preempt_limit"].default
    short: int = 50

    @classmethod
    def on_vllm(cls, model: str) -> Load:
        """As much as a small model on two cores can do in two minutes."""
        args = {
            "dtype": "float32",
            "max_model_len": 2048,
            "enforce_eager": True,
            "scheduler_cls": "counting_scheduler.CountingScheduler",
        }
        return cls(
            engine="vllm",
            model=model,
            engine_args=args,
            slots=4,
            # Batch jobs run a minute here, in which more urgent jobs come than may preempt them by default.
            preempt_limit=20,
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


@dataclass(frozen=True, slots=True)
class Urgent:
    """How long an urgent job took to its first token, and its parts: to its start, and from there."""

    waited_s: float
    started_s: float
    engine_s: float
    usage: Usage


async def urgent(services: Services, load: Load = Load()) -> None:
    """Urgent jobs at random times on an idle and on a full worker: about two a second, on vLLM fewer.

    As many on the idle worker as on the full one: half of them before, and half after it.
    """
    pool = "urgent"
    with tempfile.TemporaryDirectory(prefix="inferfleet-scheduling-") as folder:
        steps = Path(folder) / "steps"
        simulated = load.engine == "simulated"
        settings: dict[str, Any] = {
            "engine": load.engine,
            "engine_args": {"token_log": str(steps)} if simulated else load.engine_args,
            "max_running": load.slots,
            "preempt_limit": load.preempt_limit,
        }
        if load.model is not None:
            settings["model"] = load.model
            os.environ["BENCH_STEPS"] = str(steps)
            # The engine's process imports the scheduler from here.
            os.environ["PYTHONPATH"] = os.pathsep.join(
                (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
            )
        async with one_worker(services, pool, **settings) as fleet:
            before = counted(steps)
            idle = await run_urgent(fleet, pool, load, range(load.urgent // 2))
            chance = random.Random(2)
            bodies = [
                load.chat(f"batch {number}", chance.randint(*load.long)) for number in range(3 * load.slots)
            ]
            jobs = await fleet.submit_many(bodies, pool=pool, priority=Priority.BATCH)
            await asyncio.gather(*(first_token(fleet, job) for job in jobs[: load.slots]))
            # From now on they may be preempted.
            await asyncio.sleep(WorkerSettings.model_fields["preempt_min_run_s"].default)
            full = await run_urgent(fleet, pool, load, range(load.urgent))
            results = [result.raise_for_state() for result in await fleet.wait_many(jobs)]
            idle += await run_urgent(fleet, pool, load, range(load.urgent // 2, load.urgent))
            generated, computed = (now - then for now, then in zip(counted(steps), before, strict=True))
            stories = [[event.kind for event in await fleet.timeline(job)] for job in jobs]
            # Nothing is more urgent now, so these run to their ends.
            again = await fleet.wait_many(await fleet.submit_many(bodies, pool=pool, priority=1))
    usages = [*(result.usage for result in results), *(each.usage for each in [*idle, *full])]
    answers = sum(usage.completion_tokens for usage in usages)
    differ = sum(result.text != alone.text for result, alone in zip(results, again, strict=True))
    print("first token, ms, median and p99; the median of full ÷ idle, and its p99")
    for part in ("waited_s", "started_s", "engine_s"):
        one, other = ([getattr(each, part) for each in some] for some in (idle, full))
        print(
            f"{part:10}: idle {shown(one)}, full {shown(other)}; "
            f"{statistics.median(other) / statistics.median(one):.2f} and {p99(other) / p99(one):.2f}"
        )
    print(
        f"{sum(story.count(EventKind.PREEMPTED) for story in stories)} preemptions, "
        f"{differ} of {len(jobs)} answers differ, {generated / answers - 1:.2%} of all tokens wasted"
    )
    if not simulated:
        # The last token of an answer is not computed any further.
        needed = answers + sum(usage.prompt_tokens - usage.cached_tokens - 1 for usage in usages)
        print(f"{computed / needed - 1:.2%} more tokens computed than without preemptions")
    if differ:
        raise SystemExit(1)


def counted(steps: Path) -> tuple[int, int]:
    """Return the tokens that were generated, and on vLLM those that were computed."""
    lines = [[int(number) for number in line.split()] for line in steps.read_text().splitlines()]
    return sum(line[0] for line in lines), sum(line[-1] for line in lines)


async def run_urgent(fleet: Fleet, pool: str, load: Load, numbers: range) -> list[Urgent]:
    chance = random.Random(1)

    async def one(number: int) -> Urgent:
        body = load.chat(f"urgent {number}", load.short)
        began = time.perf_counter()
        job = await fleet.submit(body, pool=pool, priority=9, stream=True)
        await first_token(fleet, job)
        waited_s = time.perf_counter() - began
        result = (await fleet.wait(job)).raise_for_state()
        at = {event.kind: event.at for event in reversed(await fleet.timeline(job))}
        started_s, engine_s = (
            (at[later] - at[earlier]).total_seconds()
            for earlier, later in (
                (EventKind.QUEUED, EventKind.STARTED),
                (EventKind.STARTED, EventKind.TOKENS),
            )
        )
        return Urgent(waited_s, started_s, engine_s, result.usage)

    running: list[asyncio.Task[Urgent]] = []
    for number in numbers:
        running.append(asyncio.create_task(one(number)))
        await asyncio.sleep(chance.uniform(0, 2 * load.every_s))
    return await asyncio.gather(*running)


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
    await speak(services, "warm", talk)


async def prompts(services: Services) -> None:
    """The same as ``warm``, for as many documents, about each of which twelve jobs without a session ask."""
    await speak(services, "prompts", ask, warm_prompt_chars=4000)


Speak = Callable[[Fleet, str, int], Awaitable[list[tuple[Result, float]]]]


async def speak(services: Services, name: str, talk: Speak, *, warm_prompt_chars: int = 0) -> None:
    """Speak on eight workers with as many as 64 at once, with and without waiting for warm workers."""
    urls: dict[str, Any] = {
        "amqp_url": services.amqp_url,
        "redis_url": services.redis_url,
        "warm_prompt_chars": warm_prompt_chars,
    }
    for wait_s in (WARM_WAIT_S, 0.0):
        pool = f"{name}-{wait_s:g}"
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
            if wait_s and not warm_prompt_chars:
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


async def ask(fleet: Fleet, pool: str, number: int) -> list[tuple[Result, float]]:
    """Ask twelve questions about a document, which is in the system prompt, as ``talk`` does."""
    chance = random.Random(number)
    answers: list[tuple[Result, float]] = []
    for each in range(12):
        await asyncio.sleep(chance.uniform(0, 2))
        said = [
            {"role": "system", "content": f"{number} " + DOCUMENT},
            {"role": "user", "content": f"{each} {QUESTION}"},
        ]
        began = time.perf_counter()
        body = {"messages": said, "simulated": {"tokens": SHORT}}
        result = (await fleet.run(body, pool=pool)).raise_for_state()
        answers.append((result, time.perf_counter() - began))
    return answers


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


MEASUREMENTS: dict[str, Callable[[Services], Awaitable[None]]] = {
    "urgent": urgent,
    "oldest": oldest,
    "tenants": tenants,
    "starts": starts,
    "warm": warm,
    "prompts": prompts,
}

if __name__ == "__main__":
    asyncio.run(main())
