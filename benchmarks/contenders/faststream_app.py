"""FastStream on RabbitMQ. It keeps no results, so its handler writes them to Redis; the ack comes after it.

``plain`` is what the tutorial shows. ``tuned`` leaves out what costs: the typed arguments and the access log.
A caller that waits uses ``broker.request``, FastStream's own request and reply.
"""

import asyncio
import logging
import os
import sys
import uuid

import orjson
import redis.asyncio as aioredis
import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue
from plan import gathered, run_async
from progress import Progress

TTL_S = 3600
TUNED = os.environ.get("BENCH_VARIANT") == "tuned"

broker = RabbitBroker(
    os.environ["BENCH_AMQP_URL"],
    default_channel=Channel(prefetch_count=256),
    **({"logger": None, "apply_types": False} if TUNED else {"log_level": logging.INFO}),
)
queue = RabbitQueue("bench-faststream-tuned" if TUNED else "bench-faststream", durable=True)
store = aioredis.Redis.from_url(os.environ["BENCH_REDIS_URL"], max_connections=256)
progress = Progress()


async def answer(job_id: str, payload: str, work_s: float) -> str:
    if work_s:
        await asyncio.sleep(work_s)
    progress.tick()
    await store.set(f"bench:{job_id}", orjson.dumps({"result": payload}), ex=TTL_S)
    return payload


if TUNED:

    @broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def work(message: RabbitMessage) -> str:
        job = orjson.loads(message) if isinstance(message, (bytes, str)) else message
        return await answer(job["job_id"], job["payload"], job["work_s"])

else:

    @broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def work(job_id: str, payload: str, work_s: float) -> str:
        return await answer(job_id, payload, work_s)


class Client:
    async def submit(self, payload: str, work_s: float) -> None:
        await broker.publish(self.job(payload, work_s), queue=queue, persist=True)

    async def submit_bulk(self, payload: str, work_s: float, count: int) -> None:
        await gathered(lambda: self.submit(payload, work_s), count)

    async def round_trip(self, payload: str, work_s: float) -> None:
        await broker.request(self.job(payload, work_s), queue=queue, persist=True, timeout=60)

    def job(self, payload: str, work_s: float) -> dict[str, object]:
        return {"job_id": uuid.uuid4().hex, "payload": payload, "work_s": work_s}


async def main() -> None:
    await broker.connect()
    await broker.declare_queue(queue)
    await run_async(Client())
    await broker.stop()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        logging.basicConfig(level=logging.WARNING if TUNED else logging.INFO)
        uvloop.run(FastStream(broker).run())
    else:
        uvloop.run(main())
