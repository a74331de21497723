"""arq, which has Redis alone for everything. Nothing is confirmed beyond Redis' own answer."""

import asyncio
import os
import sys
from typing import Any

import uvloop
from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job
from arq.worker import Worker
from plan import gathered, run_async
from progress import Progress

POLL_S = 0.001
"""How often a worker looks for jobs, and a caller for its result. The defaults are 0.5 s."""

progress = Progress()
services = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])


async def work(_: dict[str, Any], payload: str, work_s: float) -> str:
    if work_s:
        await asyncio.sleep(work_s)
    progress.tick()
    return payload


class Client:
    def __init__(self, pool: ArqRedis) -> None:
        self.pool = pool

    async def submit(self, payload: str, work_s: float) -> Job:
        job = await self.pool.enqueue_job("work", payload, work_s)
        assert job is not None
        return job

    async def submit_bulk(self, payload: str, work_s: float, count: int) -> None:
        await gathered(lambda: self.submit(payload, work_s), count)

    async def round_trip(self, payload: str, work_s: float) -> None:
        await (await self.submit(payload, work_s)).result(timeout=60, poll_delay=POLL_S)


async def submit_and_wait() -> None:
    await run_async(Client(await create_pool(services)))


def run_worker() -> None:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    Worker(
        functions=[func(work, keep_result=3600)],
        redis_settings=services,
        max_jobs=256,
        poll_delay=POLL_S,
        log_results=False,
        handle_signals=True,
    ).run()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        run_worker()
    else:
        uvloop.run(submit_and_wait())
