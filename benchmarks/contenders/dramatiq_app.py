"""dramatiq on RabbitMQ with confirms, results in Redis."""

import os
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from plan import run_blocking
from progress import Progress

broker = RabbitmqBroker(url=os.environ["BENCH_AMQP_URL"], confirm_delivery=True)
results = RedisBackend(url=os.environ["BENCH_REDIS_URL"])
broker.add_middleware(Results(backend=results, result_ttl=3_600_000))
dramatiq.set_broker(broker)
progress = Progress()


@dramatiq.actor(store_results=True, queue_name="bench-dramatiq")
def work(payload: str, work_s: float) -> str:
    if work_s:
        time.sleep(work_s)
    progress.tick()
    return payload


class Client:
    def submit(self, payload: str, work_s: float) -> "dramatiq.Message[str]":
        return work.send(payload, work_s)

    def submit_bulk(self, payload: str, work_s: float, count: int) -> None:
        for _ in range(count):
            work.send(payload, work_s)

    def result(self, handle: "dramatiq.Message[str]") -> str:
        return handle.get_result(block=True, timeout=60_000)


if __name__ == "__main__":
    run_blocking(Client())
