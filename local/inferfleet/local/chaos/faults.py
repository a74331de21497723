"""The faults of a soak, their probabilities, and their durations."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from inferfleet.local.chaos.harness import Harness, Link
from inferfleet.local.chaos.members import WorkerSlot
from inferfleet.local.chaos.producers import ProducerProcess
from inferfleet.local.chaos.proxy import Direction


class Fault(StrEnum):
    """The kinds of faults."""

    WORKER_KILL = "worker_kill"
    WORKER_TERMINATE = "worker_terminate"
    WORKER_PAUSE = "worker_pause"
    WORKER_TO_REDIS_CUT = "worker_to_redis_cut"
    REDIS_TO_WORKER_CUT = "redis_to_worker_cut"
    WORKER_TO_BROKER_CUT = "worker_to_broker_cut"
    BROKER_TO_WORKER_CUT = "broker_to_worker_cut"
    WORKER_RESET = "worker_reset"
    PRODUCER_KILL = "producer_kill"
    PRODUCER_CUT = "producer_cut"
    PRODUCER_REFUSED = "producer_refused"
    REDIS_RESTART = "redis_restart"
    REDIS_EMPTIED = "redis_emptied"
    BROKER_RESTART = "broker_restart"


SMALL = {
    Fault.WORKER_KILL: 6,
    Fault.WORKER_TERMINATE: 4,
    Fault.WORKER_PAUSE: 3,
    Fault.WORKER_TO_REDIS_CUT: 2,
    Fault.REDIS_TO_WORKER_CUT: 2,
    Fault.WORKER_TO_BROKER_CUT: 2,
    Fault.BROKER_TO_WORKER_CUT: 2,
    Fault.WORKER_RESET: 2,
    Fault.PRODUCER_KILL: 2,
    Fault.PRODUCER_CUT: 1,
}
"""Faults of one process or one link, and their weights."""

SHARED_KEYS = {**SMALL, Fault.PRODUCER_REFUSED: 10}
"""If producers share keys, one of them is sometimes refused while another is accepted."""

SMALL_EVERY_S = (1.0, 3.0)
SERVICE_EVERY_S = (8.0, 20.0)
LASTS_S = (0.5, 8.0)
"""The durations in seconds: the longest exceeds a lease, a socket timeout, and two AMQP heartbeats."""


class Faults:
    """Draws faults from a random generator and injects them."""

    def __init__(
        self,
        *,
        harness: Harness,
        places: Sequence[WorkerSlot],
        producers: Sequence[ProducerProcess],
        rng: random.Random,
        empty_redis: bool,
        shared_keys: bool,
    ) -> None:
        self._harness = harness
        self._places = places
        self._producers = producers
        self._rng = rng
        self._small = SHARED_KEYS if shared_keys else SMALL
        self._services = {Fault.REDIS_RESTART: 4, Fault.BROKER_RESTART: 2}
        if empty_redis:
            self._services[Fault.REDIS_EMPTIED] = 2
        self._restarts: set[asyncio.Task[None]] = set()
        self.happened: Counter[Fault] = Counter()
        self.lost_results: set[str] = set()

    async def run(self) -> None:
        """Inject faults until cancelled. Faults that last then stay until ``heal``."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._disturb_services())
            while True:
                await asyncio.sleep(self._rng.uniform(*SMALL_EVERY_S))
                fault = self._draw(self._small)
                tasks.create_task(self._disturb(fault, lasts_s=self._rng.uniform(*LASTS_S)))

    async def heal(self) -> None:
        """End all faults.

        Raises:
            ServiceUnreachableError: A service does not start again.

        """
        await asyncio.gather(*self._restarts)
        for place in self._places:
            place.member.process.send_signal(signal.SIGCONT)
            place.link.heal()
        for producer in self._producers:
            producer.link.heal()
            if producer.poll() not in (None, 0):
                producer.start()

    async def _disturb_services(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(*SERVICE_EVERY_S))
            fault = self._draw(self._services)
            self.happened[fault] += 1
            await self._to_its_end(self._restart_service(fault))

    async def _to_its_end(self, restart: Coroutine[Any, Any, None]) -> None:
        """Restart something. ``heal`` waits for the end of it, even if whoever asked for it is cancelled.

        Half a restart would leave a process dead, or forget which results were lost.
        """
        task = asyncio.create_task(restart)
        self._restarts.add(task)
        await asyncio.shield(task)
        self._restarts.discard(task)

    async def _restart_service(self, fault: Fault) -> None:
        match fault:
            case Fault.BROKER_RESTART:
                await self._harness.restart_broker()
            case Fault.REDIS_EMPTIED:
                self.lost_results |= await self._harness.empty_store()
            case _:
                await self._harness.restart_store()

    async def _disturb(self, fault: Fault, *, lasts_s: float) -> None:
        if fault in (Fault.PRODUCER_KILL, Fault.PRODUCER_CUT, Fault.PRODUCER_REFUSED):
            await self._disturb_producer(fault, lasts_s=lasts_s)
            return
        free = [place for place in self._places if not place.busy.locked()]
        if not free:
            return
        place = self._rng.choice(free)
        async with place.busy:
            self.happened[fault] += 1
            await self._disturb_worker(fault, place, lasts_s=lasts_s)

    async def _disturb_worker(self, fault: Fault, place: WorkerSlot, *, lasts_s: float) -> None:
        match fault:
            case Fault.WORKER_KILL:
                place.expect_end()
                await place.member.process.kill()
            case Fault.WORKER_TERMINATE:
                place.expect_end()
                place.member.process.send_signal(signal.SIGTERM)
            case Fault.WORKER_PAUSE:
                await self._pause(place, lasts_s=lasts_s)
            case Fault.WORKER_RESET:
                place.link.reset()
            case _:
                await _cut(place.link, fault, lasts_s=lasts_s)

    async def _pause(self, place: WorkerSlot, *, lasts_s: float) -> None:
        member, asleep_at = place.member, datetime.now(UTC)
        member.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(lasts_s)
        finally:
            member.process.send_signal(signal.SIGCONT)
            place.asleep[member.id].append((asleep_at, datetime.now(UTC)))

    async def _disturb_producer(self, fault: Fault, *, lasts_s: float) -> None:
        producer = self._rng.choice(self._producers)
        if producer.poll() is not None:
            return
        self.happened[fault] += 1
        if fault is Fault.PRODUCER_KILL:
            await self._to_its_end(_restart_producer(producer))
        elif fault is Fault.PRODUCER_REFUSED:
            # The process' connection is broken, and a new one gets no answer.
            producer.link.broker.reset()
            producer.link.broker.hold(Direction.TO_CLIENT)
            await asyncio.sleep(lasts_s)
            producer.link.broker.heal()
        else:
            direction = self._rng.choice(list(Direction))
            proxy = self._rng.choice((producer.link.broker, producer.link.store))
            proxy.hold(direction)
            await asyncio.sleep(lasts_s)
            proxy.heal()

    def _draw(self, weights: dict[Fault, int]) -> Fault:
        return self._rng.choices(list(weights), list(weights.values()))[0]


async def _restart_producer(producer: ProducerProcess) -> None:
    await producer.crash()
    producer.start()


async def _cut(link: Link, fault: Fault, *, lasts_s: float) -> None:
    proxy = link.store if fault in (Fault.WORKER_TO_REDIS_CUT, Fault.REDIS_TO_WORKER_CUT) else link.broker
    outwards = fault in (Fault.WORKER_TO_REDIS_CUT, Fault.WORKER_TO_BROKER_CUT)
    proxy.hold(Direction.TO_SERVICE if outwards else Direction.TO_CLIENT)
    await asyncio.sleep(lasts_s)
    proxy.heal()
