"""``inferfleet`` as a process that starts within milliseconds: forked from one that has imported everything.

Importing a worker takes Python most of a second of CPU, and the tests start hundreds of processes. A test of
how a process starts (what it imports, an option of Python, a variable that Python reads) runs
``sys.executable``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO

IMPORTED = [
    "inferfleet.cli",
    "inferfleet.cli.agent_runner",
    "inferfleet.cli.gateway",
    "inferfleet.cli.root",
    "inferfleet.producer",
    "inferfleet.worker.cli",
    "inferfleet.worker.process",
    "inferfleet.worker.engines.simulated",
]
"""What the process that is forked has imported."""


class ForkedProcess:
    """A process that runs ``inferfleet`` with these arguments; looks like a ``subprocess.Popen``.

    Its streams are files or pipes, as for ``Popen``; without ``stdin`` it reads nothing. ``preamble`` is
    Python that it runs first. One that ``may_start_others`` with multiprocessing does not end with its owner.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: IO[bytes] | int | None = None,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        start_new_session: bool = False,
        preamble: str = "",
        may_start_others: bool = False,
    ) -> None:
        if stdin in {None, subprocess.DEVNULL}:
            stdin = os.open(os.devnull, os.O_RDONLY)
        files = [stdin, stdout, stdout if stderr == subprocess.STDOUT else stderr]
        started, starting = _context().Pipe(duplex=False)
        with started:
            with starting:
                self._process = _context().Process(
                    target=_run,
                    args=(
                        list(arguments),
                        dict(env),
                        [_shared(file) for file in files],
                        starting,
                        start_new_session,
                        preamble,
                    ),
                    daemon=not may_start_others,
                )
                self._process.start()
            # From here on it has its own session and streams.
            started.recv()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; ``None`` while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it is there."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _context() -> ForkServerContext:
    # The new process imports this module by its name. A test may have changed the path, or changed it back.
    root = str(Path(__file__).parents[1])
    if root not in sys.path:
        sys.path.append(root)
    return _forkserver()


@cache
def _forkserver() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _shared(file: IO[bytes] | int) -> Connection:
    """A copy of a file's number that multiprocessing hands on."""
    return Connection(os.dup(file if isinstance(file, int) else file.fileno()))


def _run(
    arguments: list[str],
    environment: dict[str, str],
    files: list[Connection],
    starting: Connection,
    start_new_session: bool,
    preamble: str,
) -> None:
    """What the new process does."""
    if start_new_session:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
        file.close()
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    # Those that are there have buffers of the process that was forked.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww")
    )
    sys.argv = ["inferfleet", *arguments]
    starting.send(None)
    starting.close()

    exec(preamble, {})
    from inferfleet.cli import main

    main()
