"""Ours: a worker as ``inferfleet worker`` runs it, with fence, journal, metrics and JSON log lines on.

Only the engine is another: it answers at once with a text of 1 KB, as one chunk of tokens, so that the
journal has something to hold.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import uvloop
from plan import PAYLOAD, run_async
from progress import Progress

from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, Job, Usage
from inferfleet.schemas.job import Priority
from inferfleet.schemas.journal import TokenChunk, TokensEntry
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.worker.ports import Completion, EngineStats, Generation, ModelIdentity
from inferfleet.worker.process import run_process

POOL = "bench"

PORTION = 10_000
"""Jobs of a backlog that are submitted together: a million would not fit into memory."""


class NoOpEngine:
    """An ``Engine`` that does nothing, or sleeps before its tokens (``work_s``) or after (``more_s``)."""

    model = "no-op"
    identity = ModelIdentity(engine="no-op", name="no-op")
    endpoints = frozenset({Endpoint.COMPLETIONS, Endpoint.CHAT})

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    async def start(self) -> None: ...

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        if (work_s := generation.body.get("work_s", 0)) > 0:
            await asyncio.sleep(work_s)
        yield TokenChunk(token_ids=(1,), text=PAYLOAD)
        if generation.body.get("more_s"):
            await asyncio.sleep(generation.body["more_s"])
        self._progress.tick()
        said: dict[str, object] = {"text": PAYLOAD}
        if generation.endpoint is Endpoint.CHAT:
            said = {"message": {"role": "assistant", "content": PAYLOAD}}
        yield Completion(
            response={
                "id": generation.id,
                "object": "text_completion",
                "choices": [{"index": 0, **said, "finish_reason": "stop"}],
            },
            usage=Usage(prompt_tokens=250, completion_tokens=1),
        )

    def resumable(self, generation: Generation) -> bool:
        return True

    def stats(self) -> EngineStats:
        return EngineStats()

    async def stop(self) -> None: ...


class Client:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def submit(self, payload: str, work_s: float) -> Job:
        return await self._fleet.submit(body(payload, work_s), endpoint=Endpoint.COMPLETIONS, pool=POOL)

    async def submit_bulk(self, payload: str, work_s: float, count: int) -> None:
        jobs = [body(payload, work_s)] * count
        await self._fleet.submit_many(jobs, endpoint=Endpoint.COMPLETIONS, pool=POOL)

    async def round_trip(self, payload: str, work_s: float) -> None:
        (await self._fleet.wait(await self.submit(payload, work_s))).raise_for_state()

    async def stream(self, payload: str, work_s: float, count: int) -> list[float]:
        """Seconds from the submission of a streamed job to its first tokens, one job after the other."""
        return [await self._first_token({**body(payload, 0), "more_s": 0.1}) for _ in range(count)]

    async def _first_token(self, request: dict[str, object]) -> float:
        started = time.perf_counter()
        job = await self._fleet.submit(request, endpoint=Endpoint.COMPLETIONS, pool=POOL, stream=True)
        first = 0.0
        async with aclosing(self._fleet.stream(job)) as lines:
            async for line in lines:
                if isinstance(line.entry, TokensEntry) and not first:
                    first = time.perf_counter() - started
        return first

    async def backlog(self, payload: str, work_s: float, count: int) -> list[float]:
        """Submit jobs that nobody waits for, each with work of half to one and a half times ``work_s``."""
        for first in range(0, count, PORTION):
            jobs = [
                body(payload, work_s * random.uniform(0.5, 1.5)) for _ in range(min(PORTION, count - first))
            ]
            await self._fleet.submit_many(
                jobs, endpoint=Endpoint.COMPLETIONS, pool=POOL, priority=Priority.BATCH
            )
        return []

    async def turns(self, payload: str, work_s: float, count: int) -> list[float]:
        """Take one turn in each of so many sessions, and wait for all of them."""
        body = {"messages": [{"role": "user", "content": payload}]}
        for first in range(0, count, PORTION):
            jobs = [
                Job(pool=POOL, session_id=f"bench-{number}", body=body)
                for number in range(first, min(count, first + PORTION))
            ]
            for result in await self._fleet.wait_many(await self._fleet.submit_many(jobs)):
                result.raise_for_state()
        return []

    async def urgent(self, payload: str, work_s: float, count: int) -> list[float]:
        """Seconds from the submission of an urgent job to its start, every quarter of a second."""
        waits: list[float] = []
        for _ in range(count):
            job = await self._fleet.submit(
                body(payload, 0), endpoint=Endpoint.COMPLETIONS, pool=POOL, priority=Priority.URGENT
            )
            await self._fleet.wait(job)
            started = (await self._fleet.get(job)).started_at
            assert started is not None
            waits.append((started - job.submitted_at).total_seconds())
            # Spreads the samples over the backlog: back to back, they would all meet it at the same moment.
            await asyncio.sleep(0.25)
        return waits


def body(payload: str, work_s: float) -> dict[str, object]:
    return {"prompt": payload, "max_tokens": 1, "work_s": work_s}


def work() -> None:
    settings = WorkerSettings(
        amqp_url=os.environ["BENCH_AMQP_URL"],
        redis_url=os.environ["BENCH_REDIS_URL"],
        pool=POOL,
        engine="simulated",
        max_running=int(os.environ["BENCH_CONCURRENCY"]),
        look_ahead=0,
        http_port=0,
        drain_timeout_s=1,
        # As the peers are run. The other variant is what a worker does by itself: a line for each job.
        log_level="INFO" if os.environ["BENCH_VARIANT"] == "logged" else "WARNING",
    )
    run_process(settings, lambda _: NoOpEngine(Progress()))


async def submit_and_wait() -> None:
    settings = ProducerSettings(
        amqp_url=os.environ["BENCH_AMQP_URL"], redis_url=os.environ["BENCH_REDIS_URL"]
    )
    async with Fleet.connect(settings) as fleet:
        await fleet.declare_pool(POOL)
        await run_async(Client(fleet))


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        work()
    else:
        uvloop.run(submit_and_wait())
