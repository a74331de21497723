"""Celery on RabbitMQ with confirms, results in Redis, late acks."""

import os
import sys
import time

from celery import Celery
from celery.result import AsyncResult
from plan import run_blocking
from progress import Progress

app = Celery("celery_app", broker=os.environ["BENCH_AMQP_URL"], backend=os.environ["BENCH_REDIS_URL"])
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    worker_prefetch_multiplier=256 // int(os.environ["BENCH_CONCURRENCY"]),
    task_default_queue="bench-celery",
    result_expires=3600,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)
progress = Progress()


@app.task
def work(payload: str, work_s: float) -> str:
    if work_s:
        time.sleep(work_s)
    progress.tick()
    return payload


class Client:
    def submit(self, payload: str, work_s: float) -> AsyncResult:
        return work.delay(payload, work_s)

    def submit_bulk(self, payload: str, work_s: float, count: int) -> None:
        # Nobody will ask for these results, so the client need not subscribe to them.
        with app.producer_pool.acquire(block=True) as producer:
            for _ in range(count):
                work.apply_async((payload, work_s), producer=producer, ignore_result=False)

    def result(self, handle: AsyncResult) -> str:
        return handle.get(timeout=60)


if __name__ == "__main__" and sys.argv[1] == "client":
    run_blocking(Client())
