"""Starts, monitors, stops and kills worker processes on this machine.

Each is ``inferfleet worker`` as an operator would start it, with its output in a log file. It has its own
process group, so that a Ctrl-C at the terminal does not reach it, and it does not outlive its owner, however
that ends. Other modules decide the number of workers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import aiohttp
from pydantic import ValidationError

from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper, remove_folder
from inferfleet.schemas.errors import ConfigurationError, InferfleetError, ServiceUnreachableError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.health_port import LIVE_PATH

HOST = "127.0.0.1"
PREFIX = "INFERFLEET_"
POLL_INTERVAL_S = 0.03
HEARTBEAT_TIMEOUT_S = 2.0
STOP_GRACE_S = 15.0
"""How long a worker may take to exit after its ``drain_timeout_s``."""
LOG_TAIL_LINES = 15

WRONG_SETTING = 2
SERVICE_UNREACHABLE = 3
"""Exit codes whose reason is the last line of the log."""


class WorkerProcessError(InferfleetError):
    """A worker process ended unexpectedly, or was not ready in time."""


class WorkerProcess:
    """One worker process. Made by ``WorkerProcesses.start``."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        process: subprocess.Popen[bytes],
        log: Path,
        reaper: Reaper,
        http: aiohttp.ClientSession,
    ) -> None:
        self.settings = settings
        self.log = log
        self._process = process
        self._reaper = reaper
        self._http = http

    @property
    def id(self) -> str:
        """The worker id."""
        return self.settings.worker_id

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def url(self) -> str:
        """The base URL of its health and metrics."""
        return f"http://{HOST}:{self.settings.http_port}"

    def poll(self) -> int | None:
        """Return the exit code as ``subprocess`` has it, negative for a signal; ``None`` while it runs."""
        if self._process.returncode is None and self._process.poll() is not None:
            # An engine's processes must not outlive their worker. The group's number cannot be another's
            # yet: the worker was reaped this moment.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._reaper.strike("group", str(self.pid))
        return self._process.returncode

    async def heartbeat(self) -> Heartbeat | None:
        """Read the heartbeat from the worker itself; ``None`` if it does not answer."""
        if self.poll() is not None:
            return None
        try:
            async with self._http.get(self.url + LIVE_PATH) as answer:
                heartbeat = Heartbeat.model_validate_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError):
            return None
        # Another process may have been quicker to take the port.
        return heartbeat if heartbeat.worker_id == self.id else None

    def send_signal(self, number: signal.Signals) -> None:
        """Signal only the worker: a SIGTERM would make its engine's processes abort everything."""
        if self.poll() is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait until the worker has ended, and return its exit code."""
        # asyncio could tell the end of a child only if it had started it, and would reap it by itself then.
        while (code := self.poll()) is None:  # noqa: ASYNC110
            await asyncio.sleep(POLL_INTERVAL_S)
        return code

    async def stop(self) -> int:
        """Let the worker drain and exit; kill it if that takes too long. Return its exit code."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s + STOP_GRACE_S):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """Kill the worker and its engine's processes at once with SIGKILL. Return its exit code."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        return await self.wait()

    @property
    def crashed(self) -> bool:
        """Whether the worker has ended by itself with an error, whose explanation may need the whole log."""
        code = self.poll()
        return code is not None and code > 0 and code not in (WRONG_SETTING, SERVICE_UNREACHABLE)

    def describe_end(self) -> str:
        """Describe for a person how the worker ended, with the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        kept = f" (all of it: {self.log})" if self.crashed else ""
        return "\n    ".join(
            [f"worker {self.id} {_how_it_ended(self.poll())}; the end of its log{kept}:", *lines]
        )


class WorkerProcesses:
    """Owns worker processes, and stops all of them at the end of its ``async with`` block.

    If this process is killed, they are killed, too. Without a ``log_folder`` the logs are in a temporary
    folder, which is deleted after the block unless a worker has crashed.
    """

    def __init__(self, *, log_folder: Path | None = None) -> None:
        self._log_folder = log_folder
        self._reaper = Reaper()
        self._http: aiohttp.ClientSession | None = None
        self._workers: list[WorkerProcess] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._reaper)
            if self._log_folder is None:
                self._log_folder = Path(tempfile.mkdtemp(prefix="inferfleet-workers-"))
                self._reaper.add("folder", str(self._log_folder))
                stack.callback(self._remove_logs, self._log_folder)
            self._http = await stack.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HEARTBEAT_TIMEOUT_S))
            )
            stack.push_async_callback(self._stop_all)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def start(self, settings: WorkerSettings, *, output: IO[bytes] | None = None) -> WorkerProcess:
        """Start a worker with exactly these settings, without waiting for it.

        This chooses its HTTP port. The worker does not get this process' ``INFERFLEET_`` variables. With
        ``output`` it writes there, and its log file stays empty.
        """
        if self._http is None or self._log_folder is None:
            raise RuntimeError("worker processes start inside the `async with` block only")
        settings = settings.model_copy(update={"http_host": HOST, "http_port": free_port()})
        log = self._log_folder / f"{settings.worker_id}.log"
        with log.open("ab") as file:
            process = launch(environment(settings), output or file)
        self._reaper.add("group", str(process.pid))
        worker = WorkerProcess(
            settings=settings, process=process, log=log, reaper=self._reaper, http=self._http
        )
        self._workers.append(worker)
        return worker

    def _remove_logs(self, folder: Path) -> None:
        if not any(worker.crashed for worker in self._workers):
            remove_folder(folder)
        self._reaper.strike("folder", str(folder))

    async def _stop_all(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers))


def launch(environment: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start ``inferfleet worker`` in a session of its own."""
    return subprocess.Popen(
        # -P: a module in the working folder must not stand in for one of ours.
        [sys.executable, "-P", "-m", "inferfleet.cli", "worker"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


async def wait_until_ready(workers: Sequence[WorkerProcess], *, timeout_s: float) -> None:
    """Return when all of these workers take jobs.

    Raises:
        ConfigurationError: A worker ended because a setting is invalid. This message and those below have the
            end of its log.
        ServiceUnreachableError: A worker ended because RabbitMQ or Redis does not answer.
        WorkerProcessError: A worker ended for another reason, or was not ready within ``timeout_s``.

    """
    loading = list(workers)
    try:
        async with asyncio.timeout(timeout_s):
            while loading:
                for worker in loading:
                    _require_alive(worker)
                heartbeats = await asyncio.gather(*(worker.heartbeat() for worker in loading))
                loading = [
                    worker
                    for worker, heartbeat in zip(loading, heartbeats, strict=True)
                    if heartbeat is None or heartbeat.phase is not WorkerPhase.READY
                ]
                await asyncio.sleep(POLL_INTERVAL_S if loading else 0)
    except TimeoutError as error:
        raise WorkerProcessError(f"not ready within {timeout_s:g} s: {loading[0].describe_end()}") from error


def environment(settings: WorkerSettings) -> dict[str, str]:
    """Make a worker's environment from settings, and from this process' variables other than ours."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    ours = {
        PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.model_dump(mode="json", exclude_none=True).items()
    }
    return inherited | ours


def _require_alive(worker: WorkerProcess) -> None:
    code = worker.poll()
    if code is None:
        return
    if code == WRONG_SETTING:
        raise ConfigurationError(worker.describe_end())
    if code == SERVICE_UNREACHABLE:
        raise ServiceUnreachableError(worker.describe_end())
    raise WorkerProcessError(worker.describe_end())


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "still runs"
    return f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
