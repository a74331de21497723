"""Sends a worker the drain command, and waits for the answer: the phase in its heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from inferfleet.schemas.control import DrainWorker
from inferfleet.schemas.errors import PublishUnconfirmedError, UnknownWorkerError, WaitTimeoutError
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.limits import wait_limit
from inferfleet.wire.rabbitmq.confirms import RefusedError
from inferfleet.wire.redis.heartbeats import read_heartbeats, read_phase
from inferfleet.wire.redis.pipeline import CommandPipeline

POLL_S = 0.05
"""How often the worker's heartbeat is polled. The worker writes it at once when its phase changes."""

REPEAT_S = 1.0
"""How often the command is repeated. It is lost if the worker's queue is just being declared again."""


async def drain_worker(
    pipeline: CommandPipeline,
    send: Callable[[DrainWorker], Awaitable[None]],
    worker_id: str,
    *,
    timeout_s: float,
) -> None:
    """Send a worker the drain command, and wait until it drains or has gone.

    Raises:
        UnknownWorkerError: No worker with this id is alive.
        WaitTimeoutError: The worker did not answer in time.

    """
    limit_s = wait_limit(timeout_s)
    ordered = await read_phase(pipeline, worker_id)
    if ordered is None:
        alive = [heartbeat.worker_id for heartbeat in await read_heartbeats(pipeline)]
        raise UnknownWorkerError(worker_id, alive=alive)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit_s):
            while True:
                # Repeated in doubt, which does no harm.
                with suppress(PublishUnconfirmedError, RefusedError):
                    await send(DrainWorker(worker_id=worker_id))
                repeat_at = loop.time() + REPEAT_S
                while loop.time() < repeat_at:
                    now = await read_phase(pipeline, worker_id)
                    # Another start time means another worker with the same id.
                    if now is None or now[0] == WorkerPhase.DRAINING or now[1] != ordered[1]:
                        return
                    await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise WaitTimeoutError(
            f"worker {worker_id!r} did not answer the order to drain within {limit_s:g} s. It is alive, so "
            "it may have lost its connection to RabbitMQ: look at its log, or send it SIGTERM"
        ) from error
