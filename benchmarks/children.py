"""The two processes of a contender, a worker and a client, seen from the driver."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import process_tree

STEP_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 10.0


class ChildError(Exception):
    """A contender's process ended, or did not get on."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A worker has done so many jobs; ``cpu_s`` is what its processes have used until then."""

    jobs: int
    at: float
    cpu_s: float


class Worker:
    """A running worker, with its children."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def wait_for_mark(self, marks: socket.socket, name: str) -> Mark:
        """Wait until the worker says that it has come so far."""
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while time.monotonic() < deadline:
            if select.select([marks], [], [], 0.5)[0]:
                said, jobs, at = marks.recv(256).decode().split()
                if said == name:
                    return Mark(int(jobs), float(at), process_tree.cpu_s(self.pid))
            if self._process.poll() is not None:
                break
        raise ChildError(f"no mark {name!r} from the worker:\n{_tail(self._log)}")

    def stop(self) -> None:
        """End it and whatever it started."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Client:
    """A running client, which follows one order after the other."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self._answer()

    def order(self, verb: str, count: int, work_s: float = 0.0) -> dict[str, Any]:
        """Have it do something, and return what it measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {count} {work_s}\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], STEP_TIMEOUT_S)[0]:
            self._process.kill()
            raise ChildError(f"the client does not get on:\n{_tail(self._log)}")
        # Libraries print, too.
        while not (line := self._process.stdout.readline()).startswith("{"):
            if not line:
                raise ChildError(f"the client ended:\n{_tail(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def end_in_order() -> None:
    """Have SIGTERM end this process as Ctrl-C does, so that no child is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen for the marks of workers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as marks:
        marks.bind(str(path))
        try:
            yield marks
        finally:
            path.unlink()


def drain_marks(marks: socket.socket) -> None:
    """Forget what earlier workers said."""
    while select.select([marks], [], [], 0)[0]:
        marks.recv(256)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
