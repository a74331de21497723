"""By hand on aio-pika and redis-py, with the same guarantees on the happy path and nothing else.

``naive`` awaits each SET and each ack by itself. ``batched`` writes what has gathered while the last write
was under way, both to Redis and as acks. A caller that waits gets its answer through RabbitMQ's direct
reply-to. Neither has a record, a fence, a journal, retries or a way to reconnect.
"""

import asyncio
import os
import sys
import uuid
from typing import Any

import aio_pika
import orjson
import redis.asyncio as aioredis
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from plan import gathered, run_async
from progress import Progress

PRIORITIES = os.environ["BENCH_VARIANT"] == "priorities"
"""Whether the queue is like ours, so that what the priorities cost the broker can be told from the rest."""

QUEUE = "bench-raw-priorities" if PRIORITIES else "bench-raw"
REPLIES = "amq.rabbitmq.reply-to"
TTL_S = 3600
PREFETCH = 256


class Worker:
    def __init__(self, channel: aio_pika.abc.AbstractChannel, store: aioredis.Redis) -> None:
        self.channel = channel
        self.store = store
        self.progress = Progress()

    async def run(self, message: AbstractIncomingMessage) -> tuple[str, bytes]:
        job = orjson.loads(message.body)
        if job["work_s"]:
            await asyncio.sleep(job["work_s"])
        self.progress.tick()
        return f"bench:{message.message_id}", orjson.dumps({"result": job["payload"]})

    async def reply(self, message: AbstractIncomingMessage, result: bytes) -> None:
        if message.reply_to:
            answer = aio_pika.Message(result, correlation_id=message.message_id)
            await self.channel.default_exchange.publish(answer, message.reply_to, mandatory=False)


class Naive(Worker):
    async def take(self, message: AbstractIncomingMessage) -> None:
        key, result = await self.run(message)
        await self.store.set(key, result, ex=TTL_S)
        await self.reply(message, result)
        await message.ack()


class Batched(Worker):
    def __init__(self, channel: aio_pika.abc.AbstractChannel, store: aioredis.Redis) -> None:
        super().__init__(channel, store)
        self.finished: list[tuple[AbstractIncomingMessage, str, bytes]] = []
        self.arrived = asyncio.Event()
        self.open_tags: dict[int, None] = {}

    async def take(self, message: AbstractIncomingMessage) -> None:
        self.open_tags[message.delivery_tag or 0] = None
        key, result = await self.run(message)
        self.finished.append((message, key, result))
        self.arrived.set()

    async def write(self) -> None:
        underlay = await self.channel.get_underlay_channel()
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            batch, self.finished = self.finished, []
            pipeline = self.store.pipeline(transaction=False)
            for _, key, result in batch:
                pipeline.set(key, result, ex=TTL_S)
            await pipeline.execute()
            for message, _, result in batch:
                await self.reply(message, result)
            done = {message.delivery_tag or 0 for message, _, _ in batch}
            prefix = 0
            for tag in self.open_tags:
                if tag not in done:
                    break
                prefix = tag
            if prefix:
                await underlay.basic_ack(prefix, multiple=True)
            for tag in done:
                del self.open_tags[tag]
                if tag > prefix:
                    await underlay.basic_ack(tag, wait=False)


class Client:
    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self.channel = channel
        self.waiting: dict[str, asyncio.Future[bytes]] = {}

    async def submit(self, payload: str, work_s: float) -> "asyncio.Future[bytes]":
        job_id = uuid.uuid4().hex
        self.waiting[job_id] = answer = asyncio.get_running_loop().create_future()
        await self.publish(job_id, payload, work_s, reply_to=REPLIES)
        return answer

    async def publish(self, job_id: str, payload: str, work_s: float, *, reply_to: str | None = None) -> None:
        message = aio_pika.Message(
            orjson.dumps({"payload": payload, "work_s": work_s}),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=job_id,
            reply_to=reply_to,
            priority=4 if PRIORITIES else None,
        )
        await self.channel.default_exchange.publish(message, QUEUE)

    async def submit_bulk(self, payload: str, work_s: float, count: int) -> None:
        await gathered(lambda: self.publish(uuid.uuid4().hex, payload, work_s), count)

    async def hear(self, message: AbstractIncomingMessage) -> None:
        self.waiting[message.correlation_id or ""].set_result(message.body)
        del self.waiting[message.correlation_id or ""]

    async def round_trip(self, payload: str, work_s: float) -> None:
        orjson.loads(await (await self.submit(payload, work_s)))["result"]


async def main(role: str) -> None:
    connection = await aio_pika.connect(os.environ["BENCH_AMQP_URL"])
    channel = await connection.channel(publisher_confirms=role == "client")
    await channel.set_qos(PREFETCH)
    arguments: Any = {"x-max-priority": 10} if PRIORITIES else None
    queue = await channel.declare_queue(QUEUE, durable=True, arguments=arguments)
    if role == "client":
        client = Client(channel)
        replies = await channel.get_queue(REPLIES, ensure=False)
        await replies.consume(client.hear, no_ack=True)
        await run_async(client)
        return
    store = aioredis.Redis.from_url(os.environ["BENCH_REDIS_URL"], max_connections=PREFETCH)
    if role == "naive":
        await queue.consume(Naive(channel, store).take)
        await asyncio.Event().wait()
    else:
        worker = Batched(channel, store)
        await queue.consume(worker.take)
        await worker.write()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
