"""Workers for tests: real worker processes on real queues, whose engine answers as the test scripts.

A background thread owns the processes, so that asynchronous tests with any plugin and blocking tests can use
them.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis.asyncio as aioredis
from anyio import fail_after, sleep, to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from inferfleet.local.services import Services, ServicesChoice
from inferfleet.local.worker_processes import WorkerProcess, WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.schemas import FailureCode
from inferfleet.schemas.job import DEFAULT_POOL
from inferfleet.schemas.names import dead_queue, job_key, job_queue
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings, read_settings
from inferfleet.testing.script import Script, ScriptedCall
from inferfleet.wire.rabbitmq.connection import open_amqp

READY_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 30.0
HANG_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.02

SCRIPTED = "scripted"

QUICK: dict[str, Any] = {
    # After a kill a job waits until its lease expires.
    "lease_s": 3.0,
    "journal_flush_s": 0.05,
    "retry_base_s": 0.05,
    "heartbeat_interval_s": 0.5,
    "log_format": "console",
}
"""Settings of a test's workers that neither the test nor the environment sets."""


@contextmanager
def open_workers(services: Services, folder: Path) -> Generator[SyncWorkers]:
    """Let a test start workers, with its script in ``folder``. Empty the services afterwards.

    Services that were given by their URLs may be shared with others, and stay as they are.
    """
    workers = SyncWorkers(services=services, script=Script(folder))
    try:
        yield workers
    finally:
        workers.close()
        if services.kind is not ServicesChoice.URLS:
            with start_blocking_portal() as portal:
                portal.call(_empty, services, workers.pools)


async def _empty(services: Services, pools: Iterable[str]) -> None:
    """Delete all data in Redis, and the queues of the pools that had workers or jobs."""
    names = {DEFAULT_POOL, *pools}
    async with aioredis.Redis.from_url(services.redis_url) as client:
        for key in await client.keys(job_key("*")):
            name = key if isinstance(key, str) else key.decode()
            if (pool := await client.hget(name, "pool")) is not None:
                names.add(pool if isinstance(pool, str) else pool.decode())
        await client.flushdb()
    async with open_amqp(
        services.amqp_url, timeout_s=CONNECT_TIMEOUT_S, name="inferfleet tests"
    ) as connection:
        channel = await connection.channel()
        for name in names:
            await channel.queue_delete(job_queue(name))
            await channel.queue_delete(dead_queue(name))


class SyncRunningWorker:
    """One worker process."""

    def __init__(self, process: WorkerProcess, portal: BlockingPortal) -> None:
        self._process = process
        self._portal = portal

    @property
    def id(self) -> str:
        """The worker's id, as in ``JobRecord.worker_id``."""
        return self._process.id

    @property
    def pool(self) -> str:
        """The pool whose jobs the worker runs."""
        return self._process.settings.pool

    @property
    def log(self) -> str:
        """The worker's log."""
        return self._process.log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill the worker with SIGKILL. When their leases expire, other workers resume its jobs."""
        self._portal.call(self._process.kill)

    def drain(self) -> int:
        """End the worker with SIGTERM, as Kubernetes does, and return its exit code.

        It finishes the jobs that end within its ``drain_timeout_s``, and hands over the others.
        """
        return self._portal.call(self._process.stop)


class RunningWorker:
    """One worker process, for asynchronous tests."""

    def __init__(self, worker: SyncRunningWorker) -> None:
        self._worker = worker

    @property
    def id(self) -> str:
        """The worker's id, as in ``JobRecord.worker_id``."""
        return self._worker.id

    @property
    def log(self) -> str:
        """The worker's log."""
        return self._worker.log

    async def kill(self) -> None:
        """Kill the worker with SIGKILL. When their leases expire, other workers resume its jobs."""
        await to_thread.run_sync(self._worker.kill)

    async def drain(self) -> int:
        """End the worker with SIGTERM, as Kubernetes does, and return its exit code.

        It finishes the jobs that end within its ``drain_timeout_s``, and hands over the others.
        """
        return await to_thread.run_sync(self._worker.drain)


class ScriptedAnswers:
    """Scripts the answers of a test's workers. Without a script they repeat the prompt.

    Answers are selected by a request's last message, or by the prompt of a completion. If several answers
    match, the one that was scripted last counts. A new script also applies to running workers.
    """

    def __init__(self, script: Script) -> None:
        self.script = script

    def reply_to(
        self,
        prompt: str,
        *,
        with_text: str = "",
        with_calls: Iterable[tuple[str, Mapping[str, Any]]] = (),
        times: int | None = None,
        hang_after_tokens: int | None = None,
    ) -> None:
        """Answer requests whose last message contains ``prompt``, for at most ``times`` attempts.

        ``with_calls`` are calls of tools behind the text, each a name and its arguments.

        With ``hang_after_tokens`` the first attempt of each job hangs for good after that many tokens, which
        are words here: kill or drain its worker, or cancel the job. The next attempt resumes from there.
        """
        self.script.add(
            prompt=prompt,
            text=with_text,
            tool_calls=[
                ScriptedCall(name=name, arguments=json.dumps(arguments)) for name, arguments in with_calls
            ],
            times=times,
            hang_after_tokens=hang_after_tokens,
        )

    def fail_with(self, code: FailureCode | str, *, prompt: str = "", times: int | None = None) -> None:
        """Make attempts fail whose last message contains ``prompt``, at most ``times`` of them.

        After a retryable code, such as ``engine_error``, workers retry up to the job's ``max_attempts``.
        """
        self.script.add(prompt=prompt, failure=FailureCode(code), times=times)


class SyncWorkers(ScriptedAnswers):
    """Starts workers, and scripts their answers, in blocking tests. The workers end with the test."""

    def __init__(self, *, services: Services, script: Script) -> None:
        super().__init__(script)
        self._services = services
        self._stack = ExitStack()
        self._owner: tuple[BlockingPortal, WorkerProcesses] | None = None
        self._started: list[SyncRunningWorker] = []
        self._hung: set[str] = set()

    def __call__(
        self, count: int = 1, *, engine: str = SCRIPTED, **settings: Any
    ) -> Sequence[SyncRunningWorker]:
        """Start ``count`` workers, and return when they take jobs.

        ``settings`` are those of ``WorkerSettings``, such as ``pool`` and ``max_running``. Another engine
        than the default ignores the script.

        Raises:
            ConfigurationError: A setting is invalid, or there is no such engine.
            WorkerProcessError: A worker ended before it was ready.

        """
        if engine == SCRIPTED:
            settings.setdefault("engine_args", {"script": str(self.script.folder)})
        given = read_settings(WorkerSettings).model_fields_set
        quick = {name: value for name, value in QUICK.items() if name not in given}
        asked = read_settings(
            WorkerSettings,
            **quick
            | {"amqp_url": self._services.amqp_url, "redis_url": self._services.redis_url, "engine": engine}
            | settings,
        )
        portal, processes = self._open()
        return portal.call(self._start, portal, processes, asked, count)

    def until_hung(self, *, timeout_s: float = HANG_TIMEOUT_S) -> SyncRunningWorker:
        """Wait until one more answer hangs at its ``hang_after_tokens``, with its words in the journal.

        Returns the worker that runs it.

        Raises:
            TimeoutError: No further answer hung within ``timeout_s``.

        """
        portal, _ = self._open()
        return portal.call(self._until_hung, timeout_s)

    @property
    def pools(self) -> set[str]:
        """Return the pools of all started workers."""
        return {worker.pool for worker in self._started}

    def close(self) -> None:
        """End all workers, without waiting for their jobs."""
        for worker in self._started:
            worker.kill()
        self._stack.close()

    def _open(self) -> tuple[BlockingPortal, WorkerProcesses]:
        """Start the thread that owns the processes, unless there is one."""
        if self._owner is None:
            portal = self._stack.enter_context(start_blocking_portal())
            processes = self._stack.enter_context(portal.wrap_async_context_manager(WorkerProcesses()))
            self._owner = (portal, processes)
        return self._owner

    async def _start(
        self, portal: BlockingPortal, processes: WorkerProcesses, settings: WorkerSettings, count: int
    ) -> Sequence[SyncRunningWorker]:
        started = [
            processes.start(settings.model_copy(update={"worker_id": f"test-{uuid4().hex[:8]}"}))
            for _ in range(count)
        ]
        workers = [SyncRunningWorker(process, portal) for process in started]
        self._started += workers
        await wait_until_ready(started, timeout_s=READY_TIMEOUT_S)
        return workers

    async def _until_hung(self, timeout_s: float) -> SyncRunningWorker:
        urls = {"amqp_url": self._services.amqp_url, "redis_url": self._services.redis_url}
        async with Fleet.connect(read_settings(ProducerSettings, **urls)) as fleet:
            with fail_after(timeout_s):
                while True:
                    for job_id, tokens in self.script.hung():
                        if job_id in self._hung:
                            continue
                        record = await fleet.get(job_id)
                        for worker in self._started:
                            if worker.id == record.worker_id and record.tokens >= tokens:
                                self._hung.add(job_id)
                                return worker
                    await sleep(POLL_INTERVAL_S)


class Workers(ScriptedAnswers):
    """Starts workers, and scripts their answers, in asynchronous tests. The workers end with the test."""

    def __init__(self, workers: SyncWorkers) -> None:
        super().__init__(workers.script)
        self._workers = workers

    async def __call__(
        self, count: int = 1, *, engine: str = SCRIPTED, **settings: Any
    ) -> Sequence[RunningWorker]:
        """Start ``count`` workers, and return when they take jobs.

        ``settings`` are those of ``WorkerSettings``, such as ``pool`` and ``max_running``. Another engine
        than the default ignores the script.

        Raises:
            ConfigurationError: A setting is invalid, or there is no such engine.
            WorkerProcessError: A worker ended before it was ready.

        """
        start = partial(self._workers, count, engine=engine, **settings)
        return [RunningWorker(worker) for worker in await to_thread.run_sync(start)]

    async def until_hung(self, *, timeout_s: float = HANG_TIMEOUT_S) -> RunningWorker:
        """Wait until one more answer hangs at its ``hang_after_tokens``, with its words in the journal.

        Returns the worker that runs it.

        Raises:
            TimeoutError: No further answer hung within ``timeout_s``.

        """
        return RunningWorker(await to_thread.run_sync(partial(self._workers.until_hung, timeout_s=timeout_s)))
