"""Orders workers to swap their models, and follows them by their heartbeats.

A worker that has begun finishes or rolls back by itself. So if the sender dies, at most ``max_unavailable``
workers go on, and the others have not begun.

One sender at a time swaps a pool: it holds a lease, which it renews while it waits. Two could swap two
workers at once, and would leave the pool with two models. So would a sender that gives up while some workers
have begun and others have not: it waits out an outage.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from inferfleet.schemas.control import SwapModel
from inferfleet.schemas.errors import (
    InferfleetError,
    PublishUnconfirmedError,
    ServiceUnreachableError,
    UnknownWorkerError,
    WaitTimeoutError,
)
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.model_swap import ModelSwap, SwapState
from inferfleet.schemas.names import swap_key
from inferfleet.wire.draining import POLL_S, REPEAT_S
from inferfleet.wire.rabbitmq.confirms import RefusedError
from inferfleet.wire.redis import pool_scripts
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

ANSWER_S = 30.0
"""How long a worker may take to begin."""

LEASE_S = 30.0
"""How long another sender waits for one that has died."""

GONE_S = 5.0
"""How long a worker may have no heartbeat. All are missing for a moment if Redis was away for long enough."""

Send = Callable[[SwapModel], Awaitable[None]]
Tell = Callable[[str, ModelSwap], None]


class SwapFailedError(InferfleetError):
    """A worker did not swap its model. The message says which, and why."""


class Swapping:
    """Swaps the models of several workers of one pool, at most ``max_unavailable`` at a time.

    ``tell`` is called with a worker's id and its swap whenever that has changed.
    """

    def __init__(
        self, pipeline: CommandPipeline, send: Send, tell: Tell, *, pool: str, max_unavailable: int = 1
    ) -> None:
        self._pipeline = pipeline
        self._send = send
        self._tell = tell
        self._pool = pool
        self._max_unavailable = max_unavailable
        self._swapping: set[str] = set()
        self._begun = False
        self._name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"

    async def run(self, orders: Sequence[SwapModel]) -> None:
        """Swap the models of the workers that the orders name, in this order.

        A worker's swap has ended when the other model has been unloaded. After a failure no further swap
        begins; those that run are followed to their end.

        Raises:
            SwapFailedError: A worker has rolled back, has ended, or is in another swap; or another sender
                swaps the pool.
            UnknownWorkerError: A worker is not alive in this pool.
            WaitTimeoutError: A worker does not answer.

        """
        await self._require_known(orders)
        running: set[asyncio.Task[None]] = set()
        await self._hold()
        try:
            for order in orders:
                while not await self._may_begin(len(running)):
                    running = await self._some_end(running)
                self._swapping.add(order.worker_id)
                running.add(asyncio.create_task(self._swap(order)))
            while running:
                running = await self._some_end(running)
        finally:
            await cancel_and_wait(*running)
            with suppress(InferfleetError, TimeoutError):
                async with asyncio.timeout(REPEAT_S):
                    await self._lease(0.0)

    async def _some_end(self, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Wait until a swap ends, but not for long, and renew the lease. Return those that run.

        If one has failed, wait for all, and raise its error.
        """
        done = set[asyncio.Task[None]]()
        if running:
            done, running = await asyncio.wait(running, timeout=REPEAT_S, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(REPEAT_S)
        for task in done:
            if (failed := task.exception()) is not None:
                while running:
                    # Without the lease they still end, and why one has failed says more than that.
                    with suppress(InferfleetError):
                        await self._hold()
                    _, running = await asyncio.wait(running, timeout=REPEAT_S)
                raise failed
        await self._hold()
        return running

    async def _hold(self) -> None:
        """Take the lease, or renew it."""
        holder = await self._lease(LEASE_S)
        if holder != self._name:
            raise SwapFailedError(
                f"the models of pool {self._pool!r} are being swapped by another command ({holder}): wait "
                "until it has ended"
            )

    async def _lease(self, lease_s: float) -> str:
        command = pool_scripts.lease(swap_key(self._pool), holder=self._name, lease_ms=int(lease_s * 1000))
        holder: bytes = await self._pipeline.execute(*command)
        return holder.decode()

    async def _may_begin(self, running: int) -> bool:
        """Return whether one more worker may be unavailable."""
        workers = await self._workers()
        others = sum(
            (worker.phase is not WorkerPhase.READY and not worker.unfit) or _is_busy(worker.swap)
            for name, worker in workers.items()
            if name not in self._swapping
        )
        return running + others < self._max_unavailable

    async def _swap(self, order: SwapModel) -> None:
        try:
            await self._follow(order)
        finally:
            self._swapping.discard(order.worker_id)

    async def _follow(self, order: SwapModel) -> None:
        name = order.worker_id
        swap = await self._begin(order)
        self._begun = True
        while True:
            self._tell(name, swap)
            if not swap.busy:
                break
            told, found = swap, None
            while found is None or found == told:
                await asyncio.sleep(POLL_S)
                worker = await self._worker(name)
                found = None if worker is None else worker.swap
                if found is None or found.swap_id != order.swap_id:
                    raise SwapFailedError(
                        f"worker {name} ended while its swap was {told.state}: when it restarts, it loads "
                        "the model that its environment names"
                    )
            swap = found
        if swap.state is SwapState.ROLLED_BACK:
            raise SwapFailedError(f"worker {name} keeps its old model: {swap.reason}")

    async def _begin(self, order: SwapModel) -> ModelSwap:
        """Send the order until the worker shows it."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + ANSWER_S
        unreachable: ServiceUnreachableError | None = None
        while loop.time() < give_up_at:
            try:
                # Repeated in doubt, which does no harm.
                with suppress(PublishUnconfirmedError, RefusedError):
                    await self._send(order)
                unreachable = None
            except ServiceUnreachableError as error:
                if not self._begun:
                    raise
                if unreachable is None:
                    logger.warning("%s; retrying for %g s", error, ANSWER_S)
                unreachable = error
            repeat_at = loop.time() + REPEAT_S
            while loop.time() < repeat_at:
                worker = await self._worker(order.worker_id)
                if worker is None:
                    raise SwapFailedError(f"worker {order.worker_id} ended before its swap began")
                if worker.swap is not None:
                    if worker.swap.swap_id == order.swap_id:
                        return worker.swap
                    if worker.swap.busy:
                        raise SwapFailedError(
                            f"worker {order.worker_id} is in another swap, to {worker.swap.model}: "
                            "wait for it"
                        )
                await asyncio.sleep(POLL_S)
        if unreachable is not None:
            raise unreachable
        raise WaitTimeoutError(
            f"worker {order.worker_id} is alive, but did not begin its swap within {ANSWER_S:g} s: it may be "
            "of an older version, or have lost its connection to RabbitMQ. Look at its log"
        )

    async def _require_known(self, orders: Sequence[SwapModel]) -> None:
        workers = await self._workers()
        for order in orders:
            if order.worker_id not in workers:
                raise UnknownWorkerError(order.worker_id, alive=list(workers), pool=self._pool)

    async def _worker(self, name: str) -> Heartbeat | None:
        """Read a worker's heartbeat; ``None`` if the worker has ended."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GONE_S
        while True:
            worker = (await self._workers()).get(name)
            if worker is not None or loop.time() >= give_up_at:
                return worker
            await asyncio.sleep(POLL_S)

    async def _workers(self) -> dict[str, Heartbeat]:
        return {it.worker_id: it for it in await read_heartbeats(self._pipeline) if it.pool == self._pool}


def _is_busy(swap: ModelSwap | None) -> bool:
    """Whether a worker is in a swap, which a sender that has died may have begun."""
    return swap is not None and swap.busy
