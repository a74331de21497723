"""What runs of agents cost that wait for a person: memory in Redis, and no message, runner or worker.

    python benchmarks/waiting_runs.py --runs 10000

Each run has an input of 200 characters, and its model has asked for one tool call, which needs approval.
Prints the memory of a run, how long a snapshot of `inferfleet top` takes, and how long a run takes to end
after its approval. Exits with 1 if a message, a place in a runner or a slot of a worker is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio as aioredis

from inferfleet.agents import Agent, AgentRuns, tool
from inferfleet.agents.runner import Runner
from inferfleet.agents.settings import RunnerSettings
from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.schemas.names import open_runs_key, run_inbox_key, run_key, run_queue, run_steps_key
from inferfleet.schemas.run import RunState
from inferfleet.schemas.settings import WorkerSettings

QUEUE = "default"
INPUT = "Please order what is missing in the store of the second floor. " * 10
READY_S = 120.0


@tool(needs_approval=True)
def order() -> str:
    """Order what is missing."""
    return "ordered"


BUYER = Agent(
    name="buyer",
    tools=[order],
    # The simulated engine calls a tool that it is told to call, each time.
    options={"tool_choice": {"type": "function", "function": {"name": "order"}}, "max_tokens": 50},
)


@asynccontextmanager
async def running(settings: RunnerSettings) -> AsyncIterator[None]:
    """Run a runner while the block runs."""
    stopping = asyncio.Event()
    async with Fleet.connect(settings) as fleet:
        task = asyncio.create_task(Runner(fleet, [BUYER], settings, stopping=stopping).run())
        try:
            yield
        finally:
            stopping.set()
            await task


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    number: int = parser.parse_args().runs
    with running_services(ServicesChoice.AUTO) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        worker = WorkerSettings(
            **urls, engine="simulated", max_running=64, engine_args={"speed": 0}, heartbeat_interval_s=1
        )
        settings = RunnerSettings(**urls)
        async with WorkerProcesses() as workers, Fleet.connect(settings) as fleet:
            await wait_until_ready([workers.start(worker)], timeout_s=READY_S)
            async with aioredis.Redis.from_url(services.redis_url) as store:
                free = await measure(fleet, store, settings, number)
    sys.exit(0 if free else 1)


async def measure(fleet: Fleet, store: aioredis.Redis, settings: RunnerSettings, number: int) -> bool:
    """Start runs until they wait, and print what they cost. Return whether nothing is taken."""
    runs = AgentRuns(fleet)
    async with running(settings):
        begun = time.monotonic()
        ids = [await runs.start("buyer", INPUT[:200]) for _ in range(number)]
        async with asyncio.timeout(READY_S + number / 10):
            while {run.state for run in await runs.list(limit=number)} != {RunState.WAITING}:  # noqa: ASYNC110
                await asyncio.sleep(1)
        print(f"{number:,} runs wait for a person, {time.monotonic() - begun:.0f} s after the first began")
    # The runner has ended: a message that it had not acked would be back.
    messages = await fleet.publisher.waiting(run_queue(QUEUE)) or 0
    (heartbeat,) = await fleet.workers()
    sizes = [await size_of(store, run_id) for run_id in ids]
    listed: int = await store.memory_usage(open_runs_key(QUEUE), samples=0) or 0
    print(f"memory of a run in Redis: {statistics.mean(sizes) + listed / number:,.0f} bytes")
    print(f"  its keys: {min(sizes):,} to {max(sizes):,}; its place in the list: {listed / number:,.0f}")
    begun = time.monotonic()
    (view,) = (await fleet.watch.snapshot()).agents
    print(f"a snapshot of `inferfleet top`: {1000 * (time.monotonic() - begun):.0f} ms ({view})")
    jobs = heartbeat.running + heartbeat.waiting + heartbeat.held
    print(f"messages: {messages}, jobs in the worker: {jobs}")
    async with running(settings):
        begun = time.monotonic()
        (question,) = await runs.questions(ids[0])
        await runs.deny(ids[0], question.id)
        asked = [question]
        while asked in ([], [question]):
            await asyncio.sleep(0.01)
            asked = [*await runs.questions(ids[0])]
        print(f"an answered run asks its next question after {time.monotonic() - begun:.2f} s")
    return messages == jobs == 0 and view.waiting_for_people == view.unfinished == number


async def size_of(store: aioredis.Redis, run_id: str) -> int:
    """Return how many bytes the keys of a run take."""
    keys = (run_key(run_id), run_steps_key(run_id), run_inbox_key(run_id))
    return sum([await store.memory_usage(key, samples=0) or 0 for key in keys])


if __name__ == "__main__":
    asyncio.run(main())
