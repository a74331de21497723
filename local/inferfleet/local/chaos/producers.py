"""Starts and kills producer processes, and starts them again where their ledgers end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from inferfleet.local.chaos.harness import POLL_INTERVAL_S, Link
from inferfleet.local.chaos.producer import Plan
from inferfleet.local.services.reaper import Reaper


class ProducerProcess:
    """One producer with its link. Call ``start`` again after it was killed."""

    def __init__(self, plan: Plan, *, link: Link, log: Path, reaper: Reaper) -> None:
        self.link = link
        self._plan = plan.model_copy(update={"amqp_url": link.broker.url, "redis_url": link.store.url})
        self._log = log
        self._reaper = reaper
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def ledger(self) -> Path:
        """The file that it writes."""
        return self._plan.ledger

    def start(self) -> None:
        """Start the producer, or start it again."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "inferfleet.local.chaos.producer", self._plan.model_dump_json()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._reaper.add("group", str(self._process.pid))

    def poll(self) -> int | None:
        """Return the exit code; ``None`` while the producer runs."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is not None:
            self._reaper.strike("group", str(self._process.pid))
        return code

    async def wait(self) -> int:
        """Wait until the producer has ended, and return its exit code."""
        while (code := self.poll()) is None:  # noqa: ASYNC110 - a process is no event of ours
            await asyncio.sleep(POLL_INTERVAL_S)
        return code

    async def kill(self) -> int | None:
        """Kill the producer at once. Return its exit code, ``None`` if it never started."""
        if self._process is not None and self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self.wait()
        return self.poll()

    async def crash(self) -> int | None:
        """End the producer like a power cut: kill it with SIGKILL, and drop everything that it has in flight.

        Returns its exit code, ``None`` if it never started.
        """
        code = await self.kill()
        self.link.reset()
        self.link.heal()
        return code

    def log_tail(self) -> str:
        """Return the end of the producer's log."""
        return self._log.read_text(errors="replace")[-2000:]
