"""taskiq on taskiq-aio-pika, with results in Redis. The ack comes when the result is saved."""

import asyncio
import os

import uvloop
from plan import gathered, run_async
from progress import Progress
from taskiq import AsyncTaskiqTask
from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisAsyncResultBackend

POLL_S = 0.001
"""How often a caller looks for its result. taskiq's default is 0.2 s; its only way to wait is to poll."""

results: RedisAsyncResultBackend[str] = RedisAsyncResultBackend(
    os.environ["BENCH_REDIS_URL"], result_ex_time=3600
)
broker = AioPikaBroker(os.environ["BENCH_AMQP_URL"], qos=256).with_result_backend(results)
progress = Progress()


@broker.task(task_name="work")
async def work(payload: str, work_s: float) -> str:
    if work_s:
        await asyncio.sleep(work_s)
    progress.tick()
    return payload


class Client:
    async def submit(self, payload: str, work_s: float) -> AsyncTaskiqTask[str]:
        return await work.kiq(payload, work_s)

    async def submit_bulk(self, payload: str, work_s: float, count: int) -> None:
        await gathered(lambda: work.kiq(payload, work_s), count)

    async def round_trip(self, payload: str, work_s: float) -> None:
        await (await work.kiq(payload, work_s)).wait_result(check_interval=POLL_S)


async def main() -> None:
    await broker.startup()
    await run_async(Client())
    await broker.shutdown()


if __name__ == "__main__":
    uvloop.run(main())
