"""An event loop without a clock and without sockets: time is a number, and a plan decides what goes next.

Each simulated process is an ``Actor`` with its own queue. As in a real process, everything that its loop has
ready runs in order, in one turn. Between turns anything may happen: another process runs, bytes arrive, or
neither. The candidates for the next step are *sources*: actors that have something ready, and flows that have
bytes in flight. By default they take turns. A ``Plan`` may hold a source back, or break something, at any
step; so the plan is the whole schedule.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from itertools import count
from math import inf
from typing import Any, Protocol, cast

LIMIT = 200_000
"""After so many steps a schedule counts as endless."""

STEP_S = 1e-6
"""How long a step takes. A process that polls the time must see it pass."""

FOR_NOW = 0.0
"""Held back until all other sources have come to rest."""


What = tuple[int | str, ...]
"""What a source does in a step: a number of callbacks, or the size and checksum of a write."""


class Source(Protocol):
    """A candidate for the next step."""

    name: str
    queue: deque[Any]
    """What it has to do."""
    process: Actor
    """The process that has to run for it."""

    @property
    def what(self) -> What:
        """What it does next, for the trace."""
        ...

    def step(self) -> None:
        """Do the next thing."""
        ...


class Actor:
    """A simulated process: what its event loop has ready."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.process = self
        self.queue: deque[asyncio.Handle] = deque()
        self.failed: BaseException | None = None
        """The last error of a callback. The checker sees its consequences."""
        self.context: Context = copy_context()
        self.context.run(ACTOR.set, self)

    @property
    def what(self) -> What:
        """How many callbacks its loop has ready."""
        return (len(self.queue),)

    def step(self) -> None:
        """Run one turn of its loop: all callbacks that are ready now, no later ones."""
        queue = self.queue
        for _ in range(len(queue)):
            if not queue:
                return
            handle = queue.popleft()
            if handle._cancelled:
                continue
            # As ``handle._run`` does, without its call.
            try:
                handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.failed = error

    def die(self) -> None:
        """Die at once, without any cleanup."""
        self.alive = False
        self.queue.clear()


ACTOR: ContextVar[Actor] = ContextVar("actor")


def _no_network(_: Actor, port: int, __: Any) -> Any:
    raise ConnectionRefusedError(port)


class StuckError(Exception):
    """Nothing is ready, and no timer will change that; or the schedule never ends."""


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop of all actors.

    It calls ``on_step`` before step ``next_event``; ``on_step`` returns the next such step.
    """

    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.last_step = LIMIT
        """The last step that runs."""
        self.next_event = inf
        self.leap_s = 0.0
        """If nothing is ready, at least so much time passes, and whatever is due within it comes late."""
        self.on_step: Callable[[], float] = lambda: inf
        self.on_time: Callable[[], None] = lambda: None
        self.connect: Callable[[Actor, int, Any], Any] = _no_network
        self.trace: list[tuple[float, str, What]] | None = None
        """When each step began, whose it was, and what was done."""
        self.main = Actor("main")
        self.main.context.run(lambda: None)
        self._sources: dict[Source, None] = {}
        """The sources that have something to do, in the order in which they got it."""
        self._held: dict[Source | Actor, float] = {}
        """Until when each source is held back."""
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Actor]] = []
        self._numbers = count()

    # What asyncio asks of a loop

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run a callback in the next turn of the calling actor."""
        handle = asyncio.Handle(callback, args, self, context)
        # As ``_owner`` and ``_add``, without their calls: this is a fifth of what the loop does.
        actor: Actor = handle._context.get(ACTOR, self.main)  # type: ignore[attr-defined]
        if actor.alive:
            queue = actor.queue
            queue.append(handle)
            if len(queue) == 1:
                self._sources.setdefault(actor)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback at a time."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer, self._owner(timer)))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback after a delay."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer is skipped when its time comes."""

    def _write_to_self(self) -> None:
        """Do nothing: there are no other threads."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """Return the name: it is an address in the simulated network."""
        return [(0, 0, 0, "", (host, port))]

    async def create_connection(  # type: ignore[override]  # of all that asyncio offers, what is used here
        self, protocol_factory: Callable[[], Any], host: Any = None, port: int = 0, **_: Any
    ) -> Any:
        """Connect to a port of the simulated network."""
        protocol = protocol_factory()
        return self.connect(ACTOR.get(), port, protocol), protocol

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """Run a function at once, because there are no threads."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Do nothing: simulated processes get no signals, and are told to stop by a call."""

    def remove_signal_handler(self, sig: int) -> bool:
        """There are none."""
        return False

    def _run_once(self) -> None:
        """Go on until the loop is told to stop."""
        sources, held, timers = self._sources, self._held, self._timers
        while not self._stopping:
            if self.steps >= self.next_event:
                self.next_event = self.on_step()
            if self.steps > self.last_step:
                raise StuckError(f"no end before step {self.last_step}")
            if timers and timers[0][0] <= self.now:
                self._ring()
            source = next(iter(sources), None)
            if source is None or held or not source.queue or not source.process.alive:
                source = self._next()
                if source is None:
                    self._pass_time()
                    continue
            self.steps += 1
            self.now += STEP_S
            if self.trace is not None:
                self.trace.append((self.now, source.name, source.what))
            source.step()
            # As ``offer``.
            sources.pop(source, None)
            if source.queue and source.process.alive:
                sources[source] = None

    # What the plan asks

    def offer(self, source: Source) -> None:
        """Let a source take its turn behind all others, if it has something to do."""
        self._sources.pop(source, None)
        if source.queue and source.process.alive:
            self._sources[source] = None

    def head(self) -> Source | None:
        """Return the source that goes next."""
        return next((source for source in self._sources if self._free(source)), None)

    def hold(self, source: Source | Actor, seconds: float) -> None:
        """Hold a source back until so much time has passed; with ``FOR_NOW``, until no other can proceed."""
        self._held[source] = max(self._held.get(source, 0.0), self.now + seconds)

    @property
    def holds(self) -> bool:
        """Whether anything is held back."""
        return bool(self._held)

    def release(self) -> None:
        """Hold nothing back any more."""
        self._held.clear()

    def _free(self, source: Source) -> bool:
        return source not in self._held and source.process not in self._held

    def _next(self) -> Source | None:
        while True:
            idle: list[Source] = []
            try:
                for source in self._sources:
                    if not source.queue or not source.process.alive:
                        idle.append(source)
                    elif not self._held or self._free(source):
                        return source
            finally:
                for source in idle:
                    del self._sources[source]
            # All other sources have come to rest.
            over = [source for source, until in self._held.items() if until <= self.now]
            if not over:
                return None
            for source in over:
                del self._held[source]

    def _pass_time(self) -> None:
        while self._timers and (self._timers[0][2]._cancelled or not self._timers[0][3].alive):
            heapq.heappop(self._timers)
        times = [*self._held.values(), *(when for when, *_ in self._timers[:1])]
        if not times:
            raise StuckError("nothing is ready, and nothing ever will be")
        if (earliest := min(times)) > self.now:
            self.now = max(earliest, self.now + self.leap_s)
            self.on_time()

    def _ring(self) -> None:
        """Fire the timers that are due."""
        while self._timers and self._timers[0][0] <= self.now:
            _, _, timer, actor = heapq.heappop(self._timers)
            if not timer._cancelled:
                self._add(actor, timer)

    def _add(self, actor: Actor, handle: asyncio.Handle) -> None:
        if actor.alive:
            actor.queue.append(handle)
            if len(actor.queue) == 1:
                self._sources.setdefault(actor)

    def _owner(self, handle: asyncio.Handle) -> Actor:
        return cast("Actor", handle._context.get(ACTOR, self.main))  # type: ignore[attr-defined]

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """Make a task whose place in a set does not depend on its address in memory."""
        return _Task(coro, loop=self, **options)

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future whose place in a set does not depend on its address in memory."""
        return _Future(loop=self)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Ignore unretrieved errors: the checker sees their consequences."""


_hashes = count()


def hash_by_number(self: Any) -> int:
    """Hash an object by the number of objects hashed before, not by its address in memory."""
    number: int | None = getattr(self, "_hash", None)
    if number is None:
        number = self._hash = next(_hashes)
    return number


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address in memory."""

    __hash__ = hash_by_number
    _hash: int | None = None


class _Future(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address in memory."""

    __hash__ = hash_by_number
    _hash: int | None = None
