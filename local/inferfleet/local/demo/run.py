"""The demo from its workers' start to its report."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence

from inferfleet.local.demo.load import Load
from inferfleet.local.demo.progress import Progress
from inferfleet.local.demo.queue_depth import queue_depth
from inferfleet.local.demo.report import Report, report_on
from inferfleet.local.demo.view import View
from inferfleet.local.demo.workload import POOL
from inferfleet.local.services import Services
from inferfleet.local.worker_processes import (
    WorkerProcess,
    WorkerProcessError,
    WorkerProcesses,
    wait_until_ready,
)
from inferfleet.producer import Fleet
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings, read_settings

READY_TIMEOUT_S = 900.0
"""A large model takes minutes to load."""

STALL_S = 180.0
"""After so long without any finished job the jobs that are left count as lost. Well above a lease."""

LOOK_INTERVAL_S = 0.15


async def run_demo(
    *, services: Services, worker: WorkerSettings, workers: int, jobs: int, seed: int, view: View
) -> Report:
    """Start ``workers`` workers, put ``jobs`` jobs through them, and report.

    A worker that dies under the load is a message, not an end, as long as there is another one.

    Raises:
        ConfigurationError: A worker ended before it was ready, because a setting is wrong.
        WorkerProcessError: A worker ended before it was ready for another reason, or all ended.
        ServiceUnreachableError: RabbitMQ or Redis does not answer.

    """
    urls = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
    async with WorkerProcesses() as processes:
        started = [
            processes.start(
                worker.model_copy(update={**urls, "pool": POOL, "worker_id": f"demo-{os.getpid()}-{number}"})
            )
            for number in range(1, workers + 1)
        ]
        view.say(f"workers: {workers}, engine {worker.engine} {worker.model}".rstrip())
        await wait_until_ready(started, timeout_s=READY_TIMEOUT_S)
        async with (
            Fleet.connect(read_settings(ProducerSettings, **urls)) as fleet,
            queue_depth(services.amqp_url, POOL) as depth,
        ):
            progress = Progress(total=jobs)
            load = Load(fleet=fleet, engine=worker.engine, seed=seed, progress=progress)
            await _watch(load, progress, workers=started, depth=depth, view=view)
            return report_on(
                load.submitted,
                await fleet.get_many(load.submitted),
                total=jobs,
                duration_s=progress.changed - progress.started,
                services=services.description,
            )


async def _watch(
    load: Load,
    progress: Progress,
    *,
    workers: Sequence[WorkerProcess],
    depth: Callable[[], Awaitable[int | None]],
    view: View,
) -> None:
    """Show the load as it runs, until it has ended or has come to a stop."""
    running = asyncio.create_task(load.run())
    alive = list(workers)
    try:
        while not running.done():
            await asyncio.wait({running}, timeout=LOOK_INTERVAL_S)
            for worker in [worker for worker in alive if worker.poll() is not None]:
                alive.remove(worker)
                if not alive:
                    raise WorkerProcessError(f"no worker is left: {worker.describe_end()}")
                view.say(f"{worker.describe_end()}\nthe other workers take over")
            progress.queued = await depth()
            progress.workers = list(await asyncio.gather(*(worker.heartbeat() for worker in workers)))
            view.show(progress)
            if time.monotonic() - progress.changed > STALL_S:
                view.say(f"no job has finished for {STALL_S:g} s; not waiting any longer")
                return
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
