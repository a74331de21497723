"""A server as a child process, in its own process group, with its output in a log file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from inferfleet.local.services.reaper import Reaper
from inferfleet.schemas.errors import ServiceUnreachableError

Answer = TypeVar("Answer")

LOG_TAIL_LINES = 25
POLL_INTERVAL_S = 0.03
STOP_TIMEOUT_S = 20.0


class ChildProcess:
    """A process that does not outlive its launcher, and can be killed and started again.

    Signals from the terminal do not reach it. ``reaper`` kills it if the launcher is killed. Not thread-safe.
    """

    def __init__(
        self,
        *,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        reaper: Reaper,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._reaper = reaper
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            RuntimeError: The process is not running.

        """
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Start the process without waiting for it to serve."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already, as process {self.pid}")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                self._command,
                env=self._environment,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._reaper.add("group", str(self._process.pid))

    def wait_until(self, attempt: Callable[[], Answer], *, timeout_s: float) -> Answer:
        """Repeat ``attempt`` until it does not raise ``OSError``, and return what it returned.

        Raises:
            ServiceUnreachableError: The process ended, or did not serve in time. The message holds the
                end of its log.

        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return attempt()
            except OSError as error:
                reason = error
            if self._process is None or self._process.poll() is not None:
                code = None if self._process is None else self._process.returncode
                raise self._start_error(f"ended with code {code} while starting") from reason
            if time.monotonic() > deadline:
                raise self._start_error(f"did not serve within {timeout_s:g} s ({reason})") from reason
            time.sleep(POLL_INTERVAL_S)

    def kill(self) -> None:
        """Kill the whole process group with SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask the process to end, and kill it after ``STOP_TIMEOUT_S``."""
        self._end(signal.SIGTERM)

    def _end(self, signal_number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # Do not signal a process that has ended by itself: its number may have been reused.
        if process.poll() is None:
            os.killpg(process.pid, signal_number)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._reaper.strike("group", str(process.pid))

    def _start_error(self, what: str) -> ServiceUnreachableError:
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return ServiceUnreachableError("\n    ".join([f"{self.name} {what}; the end of its log:", *lines]))
