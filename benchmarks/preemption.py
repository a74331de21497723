"""The first token of an urgent job on a full worker with a backlog ÷ on an idle worker.

    .venv/bin/python benchmarks/preemption.py
    .venv-vllm/bin/python benchmarks/preemption.py --engine vllm     on the CPU, with a tiny model

Says also how many tokens the engine generated for nothing, and fails if an answer is not the one that the
same job gets when nothing preempts it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import CPU_ARGUMENTS, LOAD_TIMEOUT_S
from machine import benchmark_services

from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.producer.timeline import EventKind
from inferfleet.schemas import Job
from inferfleet.schemas.journal import TokensEntry
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings

POOL = "preemption"
BACKLOG = 2
"""For each slot, how many jobs wait besides the one that runs."""
URGENT_TOKENS = 8
MAX_MODEL_LEN = 4096


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engine", choices=["simulated", "vllm"], default="simulated")
    parser.add_argument("--urgent", type=int, default=100, help="urgent jobs, one at a time, in each state")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1500, help="of each answer of the backlog")
    parser.add_argument("--from", type=int, default=9, dest="preempt_from", help="10: without preemption")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with (
        tempfile.TemporaryDirectory(prefix="inferfleet-preemption-") as folder,
        benchmark_services() as services,
    ):
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        settings = WorkerSettings(
            **urls,
            pool=POOL,
            engine=arguments.engine,
            max_running=arguments.slots,
            preempt_from=arguments.preempt_from,
        )
        if arguments.engine == "vllm":
            model = build_tiny_model(Path(folder) / "model", max_model_len=MAX_MODEL_LEN)
            settings = settings.model_copy(
                update={"model": str(model), "engine_args": {**CPU_ARGUMENTS, "max_model_len": MAX_MODEL_LEN}}
            )
        async with WorkerProcesses() as workers, Fleet.connect(ProducerSettings(**urls)) as fleet:
            await wait_until_ready([workers.start(settings)], timeout_s=LOAD_TIMEOUT_S)
            await measure(fleet, arguments)


def chat(arguments: argparse.Namespace, words: str, tokens: int) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": words}]}
    if arguments.engine == "simulated":
        return {**body, "simulated": {"tokens": tokens}}
    return {**body, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}


async def measure(fleet: Fleet, arguments: argparse.Namespace) -> None:
    async def first_tokens_s(state: str) -> list[float]:
        return [
            await first_token_s(fleet, chat(arguments, f"{state} {number}", URGENT_TOKENS))
            for number in range(arguments.urgent)
        ]

    idle = await first_tokens_s("idle")
    bodies = [
        chat(arguments, f"batch {number}", arguments.tokens)
        for number in range((1 + BACKLOG) * arguments.slots)
    ]
    jobs = await fleet.submit_many(bodies, pool=POOL, priority=1)
    for job in jobs[: arguments.slots]:
        await first_token(fleet, job)
    full = await first_tokens_s("full")
    records = (await fleet.get_many(jobs)).values()
    unfinished = sum(record is not None and not record.state.terminal for record in records)
    if unfinished < arguments.slots:
        raise SystemExit("The worker was not full until the end: give fewer --urgent or more --tokens.")
    results = [result.raise_for_state() for result in await fleet.wait_many(jobs)]
    (worker,) = await fleet.workers()
    generated = worker.tokens_generated
    answers = sum(result.usage.completion_tokens for result in results) + 2 * arguments.urgent * URGENT_TOKENS
    preempted: set[str] = set()
    preemptions = 0
    for job in jobs:
        kinds = [event.kind for event in await fleet.timeline(job)]
        if times := kinds.count(EventKind.PREEMPTED):
            preempted.add(job.id)
            preemptions += times
    # Nothing is more urgent now, so these run to their ends.
    again = await fleet.wait_many(await fleet.submit_many(bodies, pool=POOL, priority=1))
    other = sum(result.text != alone.text for result, alone in zip(results, again, strict=True))
    for state, taken in (("idle", idle), ("full", full)):
        median_ms = statistics.median(taken) * 1000
        print(f"first token, {state}: median {median_ms:.1f} ms, p99 {p99(taken) * 1000:.1f} ms")
    medians = statistics.median(full) / statistics.median(idle)
    print(f"full ÷ idle: median {medians:.2f}, p99 {p99(full) / p99(idle):.2f}")
    print(f"{preemptions} preemptions of {len(preempted)} jobs; {other} of {len(jobs)} answers differ")
    print(f"tokens generated for nothing: {generated / answers - 1:.2%}")
    if other:
        raise SystemExit(1)


async def first_token_s(fleet: Fleet, body: dict[str, Any]) -> float:
    """Return how long an urgent job takes from its submission to its first token."""
    began = time.perf_counter()
    job = await fleet.submit(body, pool=POOL, priority=9, stream=True)
    await first_token(fleet, job)
    taken = time.perf_counter() - began
    await fleet.wait(job)
    return taken


async def first_token(fleet: Fleet, job: Job) -> None:
    async for line in fleet.stream(job):
        if isinstance(line.entry, TokensEntry):
            return


def p99(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100)[-1]


if __name__ == "__main__":
    asyncio.run(main())
