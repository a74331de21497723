"""Worker processes on this machine: start them, see how they are, stop or kill them.

Each is ``inferfleet worker`` as an operator would start it, with its output in a log file. It has a
process group of its own, so that a Ctrl-C at the terminal does not reach it, and it does not outlive its
owner, however that one ends. How many there should be is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import ValidationError

from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper, remove_folder
from inferfleet.schemas.errors import ConfigurationError, InferfleetError, ServiceUnreachableError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.http import LIVE_PATH

HOST = "127.0.0.1"
PREFIX = "INFERFLEET_"
POLL_INTERVAL_S = 0.03
HEARTBEAT_TIMEOUT_S = 2.0
STOP_GRACE_S = 15.0
"""How long a worker may take to end after its ``drain_timeout_s``."""
LOG_TAIL_LINES = 15

WRONG_SETTING = 2
SERVICE_UNREACHABLE = 3
"""Exit codes whose reason is the last line of the log."""


class WorkerProcessError(InferfleetError):
    """A worker process ended before its time, or was not ready in time."""


class WorkerProcess:
    """One worker process. ``WorkerProcesses.start`` makes it."""

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
        """Worker id."""
        return self.settings.worker_id

    @property
    def pid(self) -> int:
        """Its process id."""
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
        """Ask the worker itself how it is; ``None`` if it does not answer."""
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
        """Signal the worker alone: its engine's processes would take a SIGTERM as an order to abort."""
        if self.poll() is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait until it has ended, and return its exit code."""
        # asyncio could tell the end of a child only if it had started it, and would reap it by itself then.
        while (code := self.poll()) is None:  # noqa: ASYNC110
            await asyncio.sleep(POLL_INTERVAL_S)
        return code

    async def stop(self) -> int:
        """Let it drain and end; kill it if that takes longer than it may. Returns its exit code."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s + STOP_GRACE_S):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """Kill it and its engine's processes at once, with SIGKILL. Returns its exit code."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        return await self.wait()

    @property
    def crashed(self) -> bool:
        """Whether it has ended by itself, with an error that may need its whole log to understand."""
        code = self.poll()
        return code is not None and code > 0 and code not in (WRONG_SETTING, SERVICE_UNREACHABLE)

    def describe_end(self) -> str:
        """Say for a person how it ended, with the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        kept = f" (all of it: {self.log})" if self.crashed else ""
        return "\n    ".join(
            [f"worker {self.id} {_how_it_ended(self.poll())}; the end of its log{kept}:", *lines]
        )


class WorkerProcesses:
    """Owns worker processes: at the end of its ``async with`` block all of them are stopped.

    Should this process be killed, they are killed too. Without a ``log_folder`` the logs are in a
    temporary folder, which is gone after the block unless a worker crashed.
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

    def start(self, settings: WorkerSettings) -> WorkerProcess:
        """Start a worker with exactly these settings, without waiting for it.

        Its HTTP address is chosen here. ``INFERFLEET_`` variables of this process do not reach it.
        """
        if self._http is None or self._log_folder is None:
            raise RuntimeError("worker processes start inside the `async with` block only")
        settings = settings.model_copy(update={"http_host": HOST, "http_port": free_port()})
        log = self._log_folder / f"{settings.worker_id}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                # -P: a module in the working folder must not stand in for one of ours.
                [sys.executable, "-P", "-m", "inferfleet.cli", "worker"],
                env=environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
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


async def wait_until_ready(workers: Sequence[WorkerProcess], *, timeout_s: float) -> None:
    """Return when all of these workers take jobs.

    Raises:
        ConfigurationError: One ended because a setting is wrong. This message and those below hold the
            end of its log.
        ServiceUnreachableError: One ended because RabbitMQ or Redis does not answer.
        WorkerProcessError: One ended for another reason, or they were not ready within ``timeout_s``.

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
    """Spell settings as the environment of a worker, which also has all that is not ours of this process."""
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
