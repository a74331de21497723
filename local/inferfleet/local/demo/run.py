"""Runs the demo, from the start of its workers to its report."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping

from inferfleet.local.demo.load import Load
from inferfleet.local.demo.progress import Progress, WorkerView
from inferfleet.local.demo.queue_depth import queue_depth
from inferfleet.local.demo.report import Report, report_on
from inferfleet.local.demo.view import View
from inferfleet.local.demo.workload import POOL, workload_for
from inferfleet.local.services import Services
from inferfleet.local.worker_processes import (
    WorkerProcess,
    WorkerProcessError,
    WorkerProcesses,
    wait_until_ready,
)
from inferfleet.producer import Fleet
from inferfleet.schemas.journal import JournalEntry
from inferfleet.schemas.result import JobRecord
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings, read_settings

READY_TIMEOUT_S = 900.0
"""A large model takes minutes to load."""

STALL_S = 180.0
"""After so long without a finished job the remaining jobs count as lost. Well above a lease."""

LOOK_INTERVAL_S = 0.15


async def run_demo(
    *, services: Services, worker: WorkerSettings, workers: int, jobs: int, seed: int, view: View
) -> Report:
    """Start ``workers`` workers, put ``jobs`` jobs through them, and report.

    In the middle of the urgent answer, kill the worker that generates it, if there is another one. If a
    worker dies by itself, report it and continue, as long as there is another one.

    Raises:
        ConfigurationError: A worker ended before it was ready, because a setting is invalid.
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
            progress = Progress(total=jobs, workers=[WorkerView(each.id) for each in started])
            processes_by_id = {each.id: each for each in started}
            load = Load(
                fleet=fleet,
                workload=workload_for(worker.engine),
                seed=seed,
                progress=progress,
                kill=_killing(processes_by_id, progress) if workers > 1 else None,
            )
            await _watch(load, progress, workers=processes_by_id, depth=depth, view=view)
            records = await fleet.get_many(load.submitted)
            return report_on(
                load.submitted,
                records,
                journals=await _journals(fleet, records),
                urgent=progress.urgent,
                killed=", ".join(
                    f"worker {number}" for number, each in enumerate(progress.workers, start=1) if each.killed
                ),
                total=jobs,
                tokens_generated=sum(each.tokens_generated for each in progress.workers),
                duration_s=progress.changed - progress.started,
                services=services.description,
            )


def _killing(workers: Mapping[str, WorkerProcess], progress: Progress) -> Callable[[str], Awaitable[None]]:
    async def kill(worker_id: str) -> None:
        view = progress.workers[progress.number(worker_id) - 1]
        # Read before the kill, because nobody can ask the worker afterwards.
        view.hear(await workers[worker_id].heartbeat())
        view.killed = True
        await workers[worker_id].kill()

    return kill


async def _watch(
    load: Load,
    progress: Progress,
    *,
    workers: Mapping[str, WorkerProcess],
    depth: Callable[[], Awaitable[int | None]],
    view: View,
) -> None:
    """Show the load while it runs, until it has ended or stalled."""
    running = asyncio.create_task(load.run())
    alive = list(workers.values())
    try:
        while not running.done():
            await asyncio.wait({running}, timeout=LOOK_INTERVAL_S)
            for worker in [worker for worker in alive if worker.poll() is not None]:
                alive.remove(worker)
                if not alive:
                    raise WorkerProcessError(f"no workers are left: {worker.describe_end()}")
                if not progress.workers[progress.number(worker.id) - 1].killed:
                    view.say(f"{worker.describe_end()}\nthe other workers take over")
            progress.queued = await depth()
            await _ask(workers, progress)
            view.show(progress)
            if time.monotonic() - progress.changed > STALL_S:
                view.say(f"no job has finished for {STALL_S:g} s; not waiting any longer")
                return
        await running
        # For the final token counts.
        await _ask(workers, progress)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _ask(workers: Mapping[str, WorkerProcess], progress: Progress) -> None:
    """Read the heartbeats of all workers."""
    heartbeats = await asyncio.gather(*(workers[each.id].heartbeat() for each in progress.workers))
    for each, heartbeat in zip(progress.workers, heartbeats, strict=True):
        each.hear(heartbeat)


async def _journals(fleet: Fleet, records: Mapping[str, JobRecord | None]) -> dict[str, list[JournalEntry]]:
    """Read the journals of the finished jobs with more than one attempt."""

    async def read(job_id: str) -> list[JournalEntry]:
        return [line.entry async for line in fleet.stream(job_id)]

    ids = [id_ for id_, record in records.items() if record and record.result and record.attempt > 1]
    return dict(zip(ids, await asyncio.gather(*map(read, ids)), strict=True))
