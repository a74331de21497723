"""Which server gets a request: the least busy of those that are healthy, within limits that follow its load.

A server's limit falls by half when it answers 429, or when its first token comes late, and grows by one for
each round of answers without that: additive increase, multiplicative decrease, as in TCP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

from inferfleet.wire.breaker import RECOVERY_S, Breaker
from inferfleet.worker.engines.openai.errors import HostLostError, ServerError
from inferfleet.worker.ports import EngineDeadError

BUSY_PAUSE_S: Final = 1.0
"""How long a server that answers 429 gets no request, if it does not say how long."""

SHORTEST_PAUSE_S: Final = 0.1
"""The shortest pause of a busy server: a ``Retry-After`` of 0 must not cause a flood of requests."""


class Host:
    """One server. ``limit`` is how many requests it may run at once, ``running`` how many it runs for us."""

    def __init__(self, url: str, *, max_running: int) -> None:
        self.url = url
        parts = urlsplit(url)
        self.name = parts.netloc
        self.root = url.removesuffix("/v1")
        """Where vLLM serves what is not OpenAI's."""
        self.breaker = Breaker(f"the server {self.name}", HostLostError, ServerError)
        self.running = 0
        self.limit = float(max_running)
        self.verified_at = float("-inf")
        """When it last had the model, by the monotonic clock."""
        self.another_model = False
        self.silent = False
        """Whether it does not even answer questions about itself."""
        self._max_running = max_running
        self._paused_until = 0.0
        self._halved_at = float("-inf")

    @property
    def free(self) -> bool:
        """Whether it may get a request now."""
        return (
            not self.another_model
            and not self.silent
            and not self.breaker.open
            and self.running < int(self.limit)
            and self._paused_until <= time.monotonic()
        )

    @property
    def pause_s(self) -> float:
        """How much longer it gets no request, because it was busy."""
        return max(0.0, self._paused_until - time.monotonic())

    @property
    def free_in_s(self) -> float:
        """After how long it may be free again although no request has ended."""
        return self.pause_s or RECOVERY_S

    def succeeded(self) -> None:
        """Raise the limit a little."""
        self.limit = min(self._max_running, self.limit + 1 / self.limit)

    def overloaded(self, *, asked_at: float, pause_s: float = 0.0) -> None:
        """Halve the limit, and pause.

        Requests that were sent before the limit fell say nothing about the limit that there is now.
        """
        now = time.monotonic()
        if asked_at > self._halved_at:
            self.limit = max(1.0, min(self.limit, self.running) / 2)
            self._halved_at = now
        self._paused_until = max(self._paused_until, now + pause_s)


class Hosts:
    """All servers of one engine."""

    def __init__(self, urls: Collection[str], *, max_running: int) -> None:
        self.all = [Host(url, max_running=max_running) for url in urls]
        self.waiting = 0
        self.death: str | None = None
        """Why no server can answer any more."""
        self._changed = asyncio.Event()

    @property
    def running(self) -> int:
        """How many requests run on all servers."""
        return sum(host.running for host in self.all)

    @asynccontextmanager
    async def one(self, *, avoid: Collection[Host] = ()) -> AsyncGenerator[Host]:
        """Wait for a server that is free, and use it in the block: one not to ``avoid``, if there is one.

        Raises:
            EngineDeadError: No server can answer any more.

        """
        host = await self._wait(avoid)
        host.running += 1
        try:
            yield host
        finally:
            host.running -= 1
            self.wake()

    def pause_s(self, *, but: Host) -> float:
        """Return how much longer all others get no request, because they were busy."""
        others = [host.pause_s for host in self.all if host is not but and not host.another_model]
        return min(others, default=float("inf"))

    def die(self, reason: str) -> None:
        """Let no request through from now on."""
        self.death = self.death or reason
        self.wake()

    def require_alive(self) -> None:
        """Raise ``EngineDeadError`` if no server can answer any more."""
        if self.death is not None:
            raise EngineDeadError(self.death)

    def wake(self) -> None:
        """Let those that wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, avoid: Collection[Host]) -> Host:
        self.waiting += 1
        try:
            while True:
                self.require_alive()
                free = [host for host in self.all if host.free]
                if free:
                    return min(free, key=lambda host: (host in avoid, host.running / host.limit))
                changed = self._changed
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(host.free_in_s for host in self.all)):
                        await changed.wait()
        finally:
            self.waiting -= 1
