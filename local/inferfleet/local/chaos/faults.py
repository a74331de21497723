"""The faults of processes and links, their probabilities, and their durations.

The faults of services are in ``service_faults`` and ``cluster_faults``; they are injected here, too.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from inferfleet.local.chaos.harness import Link
from inferfleet.local.chaos.limits import few_files
from inferfleet.local.chaos.members import WorkerSlot
from inferfleet.local.chaos.producers import ProducerProcess
from inferfleet.local.chaos.proxy import Direction
from inferfleet.local.chaos.service_faults import NothingHitError, ServiceFaults
from inferfleet.schemas.heartbeat import WorkerPhase


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
    WORKER_FILES_LIMIT = "worker_files_limit"
    PRODUCER_KILL = "producer_kill"
    PRODUCER_CUT = "producer_cut"
    PRODUCER_REFUSED = "producer_refused"


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

LIMITED = {Fault.WORKER_FILES_LIMIT: 2}
"""What a soak on a cluster has as well, if the operating system can limit a running process."""

SHARED_KEYS = {**SMALL, Fault.PRODUCER_REFUSED: 10}
"""If producers share keys, one of them is sometimes refused while another is accepted."""

SMALL_EVERY_S = (1.0, 3.0)
LASTS_S = (0.5, 8.0)
"""The durations in seconds: the longest exceeds a lease, a socket timeout, and two AMQP heartbeats."""


class Faults:
    """Draws faults from a random generator and injects them."""

    def __init__(
        self,
        *,
        places: Sequence[WorkerSlot],
        producers: Sequence[ProducerProcess],
        services: ServiceFaults,
        rng: random.Random,
        shared_keys: bool,
        limits: bool,
        say: Callable[[str], None],
    ) -> None:
        self._places = places
        self._producers = producers
        self._rng = rng
        self._small = (SHARED_KEYS if shared_keys else SMALL) | (LIMITED if limits else {})
        self._services = services
        self._say = say
        self._restarts: set[asyncio.Task[None]] = set()
        self.happened: Counter[StrEnum] = Counter()
        self.missed: list[str] = []
        """Faults that changed nothing, with the reason."""

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
            await asyncio.sleep(self._rng.uniform(*self._services.every_s))
            fault = await self._services.draw(self._rng)
            await self._to_its_end(self._disturb_service(fault))

    async def _disturb_service(self, fault: StrEnum) -> None:
        began = datetime.now(UTC)
        try:
            await self._services.inject(fault)
        except NothingHitError as error:
            self.missed.append(f"{fault}: {error}")
        else:
            self.happened[fault] += 1
        self._say(f"{fault}, from {began:%H:%M:%S} to {datetime.now(UTC):%H:%M:%S}")

    async def _to_its_end(self, restart: Coroutine[Any, Any, None]) -> None:
        """Restart something. ``heal`` waits for the end of it, even if whoever asked for it is cancelled.

        Half a restart would leave a process dead, or forget which results were lost.
        """
        task = asyncio.create_task(restart)
        self._restarts.add(task)
        await asyncio.shield(task)
        self._restarts.discard(task)

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
            try:
                await self._disturb_worker(fault, place, lasts_s=lasts_s)
            except NothingHitError as error:
                self.happened[fault] -= 1
                self.missed.append(f"{fault}: {error}")

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
            case Fault.WORKER_FILES_LIMIT:
                await _limit_files(place, lasts_s=lasts_s)
            case _:
                await _cut(place.link, fault, lasts_s=lasts_s)

    async def _pause(self, place: WorkerSlot, *, lasts_s: float) -> None:
        member = place.member
        member.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(lasts_s)
        finally:
            member.process.send_signal(signal.SIGCONT)

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


async def _limit_files(place: WorkerSlot, *, lasts_s: float) -> None:
    """Break a worker's connections, and let it open no other.

    A worker that starts, or ends, may rightly fail without files.
    """
    worker = place.member.process
    heartbeat = await worker.heartbeat()
    if heartbeat is None or heartbeat.phase is not WorkerPhase.READY:
        raise NothingHitError("the worker takes no jobs yet, or no more")
    with few_files(worker.pid):
        place.link.reset()
        await asyncio.sleep(lasts_s)
        if place.link.broker.connections or place.link.store.connections:
            raise NothingHitError("the worker has connected again")
