"""Worker processes in place of pods: keeps their number, drains the idlest first, and replaces dead ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from inferfleet.local.worker_processes import (
    SERVICE_UNREACHABLE,
    WRONG_SETTING,
    WorkerProcess,
    WorkerProcessError,
    WorkerProcesses,
)
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.settings import WorkerSettings

REPLACEMENTS = 5
"""After so many replacements in a row that did not become ready, something is wrong with all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """A worker that was told to drain, and the number of jobs that it ran then. Later also how it ended."""

    worker: str
    jobs: int
    exit_code: int | None = None


class Replicas:
    """A number of workers with the same settings.

    Like a Deployment it counts wanted workers, not ready ones, and forgets a worker as soon as it drains. It
    calls ``on_drain`` twice for each drain: at its start and at its end.
    """

    def __init__(
        self,
        *,
        processes: WorkerProcesses,
        settings: WorkerSettings,
        tasks: asyncio.TaskGroup,
        on_drain: Callable[[Drained], None],
        say: Callable[[str], None],
    ) -> None:
        self._processes = processes
        self._settings = settings
        self._tasks = tasks
        self._on_drain = on_drain
        self._say = say
        self._workers: list[WorkerProcess] = []
        self._draining: dict[str, asyncio.Task[None]] = {}
        self._numbers = count(1)
        self._replaced = 0

    @property
    def wanted(self) -> int:
        """The number of wanted workers."""
        return len(self._workers)

    @property
    def draining(self) -> int:
        """The number of draining workers."""
        return len(self._draining)

    async def scale(self, replicas: int) -> None:
        """Start workers, or drain the idlest, without waiting for either."""
        while len(self._workers) < replicas:
            self._start()
        if (surplus := len(self._workers) - replicas) > 0:
            heartbeats = await asyncio.gather(*(worker.heartbeat() for worker in self._workers))
            idlest = sorted(
                zip(self._workers, heartbeats, strict=True), key=lambda pair: deletion_cost(pair[1])
            )
            for worker, heartbeat in idlest[:surplus]:
                self._workers.remove(worker)
                self._drain(worker, heartbeat)

    async def reconcile(self) -> None:
        """Replace workers that have ended by themselves.

        Raises:
            ConfigurationError: A worker ended because a setting is invalid.
            WorkerProcessError: One worker after the other ended before it was ready.

        """
        ended = [worker for worker in self._workers if worker.poll() is not None]
        for worker in ended:
            if worker.poll() == WRONG_SETTING:
                raise ConfigurationError(worker.describe_end())
            self._replaced += 1
            if self._replaced > REPLACEMENTS and worker.poll() != SERVICE_UNREACHABLE:
                raise WorkerProcessError(f"{self._replaced} workers in a row ended: {worker.describe_end()}")
            self._say(f"{worker.describe_end()}\nanother one takes its place")
            self._workers.remove(worker)
            self._start()
        if self._replaced and not ended:
            heartbeats = await asyncio.gather(*(worker.heartbeat() for worker in self._workers))
            if any(it is not None and it.phase is WorkerPhase.READY for it in heartbeats):
                self._replaced = 0

    def _start(self) -> None:
        worker_id = f"{self._settings.worker_id}-{next(self._numbers)}"
        self._workers.append(
            self._processes.start(self._settings.model_copy(update={"worker_id": worker_id}))
        )

    def _drain(self, worker: WorkerProcess, heartbeat: Heartbeat | None) -> None:
        self._on_drain(Drained(worker=worker.id, jobs=jobs_in(heartbeat)))
        self._draining[worker.id] = self._tasks.create_task(self._end(worker))

    async def _end(self, worker: WorkerProcess) -> None:
        try:
            code = await worker.stop()
            self._on_drain(Drained(worker=worker.id, jobs=0, exit_code=code))
        finally:
            del self._draining[worker.id]


def deletion_cost(heartbeat: Heartbeat | None) -> tuple[bool, int]:
    """Order workers as Kubernetes orders pods to remove: those not ready first, then the idlest."""
    ready = heartbeat is not None and heartbeat.phase is WorkerPhase.READY
    return ready, jobs_in(heartbeat)


def jobs_in(heartbeat: Heartbeat | None) -> int:
    """Count the jobs inside a worker's engine."""
    return 0 if heartbeat is None else heartbeat.running + heartbeat.waiting
