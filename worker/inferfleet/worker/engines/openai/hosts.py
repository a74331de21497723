"""Which server gets a request: the least busy of those that are healthy, within limits that follow its load.

A server whose last requests have failed comes last, however idle it is: one that fails fast is always idle.

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


LONGEST_DOUBT_S: Final = 32.0
"""For how long at most a server comes last after its requests have failed. This doubles with each failure."""


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
        self.verifying: asyncio.Task[None] | None = None
        """Finds out whether it has the model, for all requests that need to know it now."""
        self._failures = 0
        self._failed_at = float("-inf")
        self._max_running = max_running
        self._paused_until = 0.0
        self._halved_at = float("-inf")

    @property
    def usable(self) -> bool:
        """Whether it may get requests at all."""
        return not self.another_model and not self.silent

    @property
    def free(self) -> bool:
        """Whether it may get a request now."""
        return (
            self.usable
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

    @property
    def failures(self) -> int:
        """How many requests have failed on it one after the other, if the last one did so just now."""
        doubted_s = min(2.0 ** min(self._failures, 10), LONGEST_DOUBT_S)
        return self._failures if time.monotonic() - self._failed_at < doubted_s else 0

    def failed(self) -> None:
        """Prefer other servers for a while."""
        self._failures += 1
        self._failed_at = time.monotonic()

    def verified(self, verifying: asyncio.Task[None]) -> None:
        """Note that the look at it has ended. Its error is that of the requests, if any is left."""
        self.verifying = None
        _ = verifying.cancelled() or verifying.exception()

    def succeeded(self) -> None:
        """Raise the limit a little."""
        self._failures = 0
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
        """Wait for a server that is free, and use it in the block: one not to ``avoid``, if any is usable.

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

    def usable(self, *, but: Collection[Host]) -> list[Host]:
        """Return the other servers that may get requests, now or later."""
        return [host for host in self.all if host.usable and host not in but]

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
                free = [host for host in self.usable(but=avoid) or self.all if host.free]
                if free:
                    return min(free, key=lambda host: (host.failures, host.running / host.limit))
                changed = self._changed
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(host.free_in_s for host in self.all)):
                        await changed.wait()
        finally:
            self.waiting -= 1
