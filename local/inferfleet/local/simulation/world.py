"""A whole fleet in one process: producers, workers, a broker and a Redis, and what may happen to them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from math import inf
from typing import Any, assert_never

from inferfleet.local.embedded.amqp_errors import SoftError
from inferfleet.local.embedded.connection import ClientConnection
from inferfleet.local.embedded.queues import Message
from inferfleet.local.embedded.virtual_host import PublishOutcome, VirtualHost
from inferfleet.local.simulation.determinism import EPOCH_S, make_deterministic
from inferfleet.local.simulation.loop import ACTOR, FOR_NOW, LIMIT, Actor, VirtualLoop
from inferfleet.local.simulation.network import Network
from inferfleet.local.simulation.plan import Event, Kind, Plan
from inferfleet.local.simulation.resp import RedisClient, RedisServer
from inferfleet.local.simulation.store import Snapshot, Store
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JournalEntry, Result
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.names import JOBS_EXCHANGE, dead_queue, job_queue
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.worker import assembly
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import Completion, Generation
from inferfleet.worker.sweep import REPORTS_PER_INTERVAL, Sweep
from inferfleet.worker.worker import Worker

POOL = "default"
AMQP_PORT, REDIS_PORT = 5672, 6379

PRODUCERS = ("p1", "p2", "p3")
"""Nothing ever happens to the last one: it looks at what the others have left."""

WORKERS = ("w1", "w2")

PATIENCE_S = {"p1": 0.0, "p2": 15.0, "p3": 60.0}

SWEEP_INTERVAL_S = 1600.0
"""No worker publishes a job again before a quarter of this has passed. A schedule in which no service loses
anything is over before, so the sweep does not hide it if the product loses a message by itself."""

HURRIED_SWEEP_INTERVAL_S = WorkerSettings.model_fields["sweep_interval_s"].default
"""How often workers sweep while all wait for it: as they do by default."""

SNAPSHOT_S = 0.5
"""How far apart the states are that Redis may fall back to."""


@dataclass(slots=True)
class Call:
    """One submission. ``error`` says why it was not accepted; without it and ``got`` it never returned."""

    actor: str
    job: Job
    began: int
    ended: int = 0
    got: Job | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Seen:
    """What a client was given of one job."""

    job_id: str
    entries: list[JournalEntry] = field(default_factory=list[JournalEntry])
    result: Result | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Run:
    """One generation. ``ended_s`` is infinite as long as it goes on."""

    worker: str
    job_id: str
    began_s: float
    ended_s: float = inf


@dataclass(slots=True)
class History:
    """What happened, as the clients know it, and what only the simulation knows."""

    calls: list[Call] = field(default_factory=list[Call])
    seen: list[Seen] = field(default_factory=list[Seen])
    cancels: set[str] = field(default_factory=set[str])
    cancelled: dict[str, float] = field(default_factory=dict[str, float])
    """When a client was told that a job has ended as cancelled."""
    runs: list[Run] = field(default_factory=list[Run])
    problems: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """What was seen to be wrong on the way: kind, subject, detail."""
    lost: bool = False
    """Redis lost something."""
    finished_before_loss: set[str] = field(default_factory=set[str])


class World:
    """Everything there is. Made once in a process; schedules play in forks of it, a few in a row in each."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        make_deterministic(self.loop.time)
        setattr(assembly, "Sweep", self._sweep)  # noqa: B010 - the world has to hurry each
        self.network = Network(self.loop)
        self.loop.connect = self.network.connect
        self.redis = RedisServer(Store(lambda: int((EPOCH_S + self.loop.now) * 1e6)))
        self.broker = _Broker(self.loop.time)
        self.history = History()
        self.session = self.key = ""
        """The names that the clients of a schedule share."""
        self.actors = {"redis": Actor("redis"), "broker": Actor("broker")}
        self.fleets: dict[str, Fleet] = {}
        self.workers: dict[str, Worker] = {}
        self._sweeps: dict[str, _Sweep] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._ready: set[str] = set()
        self._restarts = 0
        self._schedules = 0
        self._snapshots: list[tuple[float, Snapshot]] = []
        connections: set[ClientConnection] = set()
        self.network.listen(REDIS_PORT, self.actors["redis"], lambda: RedisClient(self.redis))
        self.network.listen(
            AMQP_PORT, self.actors["broker"], lambda: ClientConnection(self.broker, connections=connections)
        )

    # Building it

    def build(self) -> None:
        """Start everybody, and wait until they are ready."""
        self.loop.run_until_complete(self._build())

    async def _build(self) -> None:
        for name in WORKERS:
            self.start_worker(name)
        for name in PRODUCERS:
            self.start_producer(name)
        await self.settled()
        # Connections to the broker are made at the first publish; those of workers, at that of a next turn.
        messages = [{"role": "user", "content": "warm up"}]
        for session in (None, "warm-up", "warm-up"):
            for name, fleet in self.fleets.items():
                await self.run_in(name, fleet.submit({"messages": messages}, session_id=session))
        await asyncio.sleep(3.0)

    async def begin(self) -> None:
        """Be ready for a schedule, also behind another one, of which nobody remembers anything."""
        self._schedules += 1
        self.session, self.key = f"session-{self._schedules}", f"key-{self._schedules}"
        self.loop.last_step = self.loop.steps + LIMIT
        for name in PRODUCERS:
            if not self.actors[name].alive:
                self.start_producer(name)
        await self.settled()
        self.broker.queue(dead_queue(POOL), owner=None).purge()
        self.loop.on_time = lambda: None
        self.loop.leap_s = 0.0
        self._snapshots.clear()
        self.history = History()

    async def settled(self) -> bool:
        """Wait until everybody is connected."""
        return await self.in_time(
            lambda: len(self._ready) == len(WORKERS) and len(self.fleets) == len(PRODUCERS), 60, pause_s=0.01
        )

    def start_producer(self, name: str) -> None:
        """Start a producer process."""
        self.fleets.pop(name, None)
        self.spawn(name, self._produce(name))

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a process under a name."""
        self.actors[name] = Actor(name)
        return self.run_in(name, work)

    def run_in(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start something in a process that is there."""
        task = self.actors[name].context.run(self.loop.create_task, work)
        # Those of the dead, too: nothing of them may be cleaned up.
        self._tasks.append(task)
        return task

    def start_worker(self, name: str) -> None:
        """Start a worker process."""
        self._ready.discard(name)
        self._restarts += 1
        settings = _worker_settings().model_copy(update={"worker_id": f"{name}.{self._restarts}"})
        engine = _Engine(lambda job_id: self._run_began(name, job_id), self.loop.time)
        self.spawn(name, self._work(name, settings, engine))

    def _run_began(self, name: str, job_id: str) -> Run:
        run = Run(name, job_id, self.loop.now)
        self.history.runs.append(run)
        return run

    def _sweep(self, **parts: Any) -> Sweep:
        sweep = self._sweeps[ACTOR.get().name] = _Sweep(**parts)
        return sweep

    async def _work(self, name: str, settings: WorkerSettings, engine: SimulatedEngine) -> None:
        worker = Worker(settings=settings, engine=engine, on_warm=lambda: self._ready.add(name))
        self.workers[name] = worker
        try:
            await worker.run()
            self.actors[name].alive = False
        except Exception as error:
            self.history.problems.append(("worker_crashed", name, repr(error)))

    async def _produce(self, name: str) -> None:
        async with Fleet.connect(_producer_settings(name)) as fleet:
            self.fleets[name] = fleet
            await asyncio.Event().wait()

    # What the plan may do to it

    def follow(self, plan: Plan, *, first: int) -> None:
        """Let the plan's events come about, at steps counted from ``first``."""
        events = deque(sorted(plan.events))
        if any(event.kind is Kind.ROLLBACK for event in events):
            self.loop.on_time = self._remember
            self._remember()

        waiting: list[Event] = []

        def on_step() -> float:
            while events and first + events[0].step <= self.loop.steps:
                waiting.append(events.popleft())
            for event in [each for each in waiting if not each.busy or self._is_busy(each.target)]:
                waiting.remove(event)
                self.apply(event)
            if waiting:
                return self.loop.steps + 1
            return first + events[0].step if events else inf

        self.loop.on_step, self.loop.next_event = on_step, first

    def heal(self) -> None:
        """Let nothing go wrong any more, and start those again that are dead."""
        self.loop.next_event = inf
        self.loop.release()
        self.network.heal()
        self.broker.full_until = 0.0
        for name in WORKERS:
            if not self.actors[name].alive:
                self.start_worker(name)

    def hurry_sweeps(self, hurried: bool) -> None:
        """Let the workers sweep often, or seldom again."""
        for name, sweep in self._sweeps.items():
            if self.actors[name].alive:
                sweep.hurry(hurried)

    def is_whole(self) -> bool:
        """Whether the plan has nothing left, and nothing is wrong that ``heal`` would mend."""
        return (
            self.loop.next_event == inf
            and not self.loop.holds
            and self.network.is_whole
            and self.broker.full_until <= self.loop.now
            and all(self.actors[name].alive for name in WORKERS)
        )

    def apply(self, event: Event) -> None:
        """Let an event come about at once."""
        match event.kind:
            case Kind.DELAY:
                if (head := self.loop.head()) is not None and head.process.name != "main":
                    self.loop.hold(head, FOR_NOW)
            case Kind.STALL:
                self.loop.hold(self.actors[event.target], event.seconds)
            case Kind.CRASH:
                self.crash(event.target, late=event.late)
            case Kind.CUT:
                self._cut(event, late=event.late)
            case Kind.REPEAT:
                self._cut(event, late=True)
            case Kind.HOLE:
                self._hole(event)
            case Kind.JUMP:
                self.loop.now += event.seconds
            case Kind.DRAIN:
                if self.actors[event.target].alive:
                    self.workers[event.target].stop()
            case Kind.FULL:
                self.broker.full_until = self.loop.now + event.seconds
            case Kind.PURGE:
                # A queue that was deleted a moment ago is empty.
                with suppress(SoftError):
                    self.broker.queue(job_queue(POOL), owner=None).purge()
            case Kind.DELETE:
                self.broker.delete_queue(job_queue(POOL), owner=None, if_unused=False, if_empty=False)
            case Kind.EMPTY:
                self._lose()
                self.redis.store.clear()
            case Kind.ROLLBACK:
                self._lose()
                self.redis.store.restore(self._snapshots[0][1])
                for name in list(self.actors):
                    for connection in self.network.between(self.actors[name], self.actors["redis"]):
                        connection.cut(late=False)
            case _:
                assert_never(event.kind)

    def _is_busy(self, target: str) -> bool:
        """Whether bytes are under way on a link, or on one link only of what a process has sent."""
        client, _, service = target.partition("-")
        actor = self.actors[client]
        if service:
            links = self.network.between(actor, self.actors[service])
            return any(flow.queue for link in links for flow in link.flows())
        return sum(bool(link.client.out.queue) for link in self.network.of(actor)) == 1

    def crash(self, name: str, *, late: bool) -> None:
        """A process dies."""
        actor = self.actors[name]
        if not actor.alive:
            return
        actor.die()
        for run in self.history.runs:
            if run.worker == name and run.ended_s == inf:
                run.ended_s = self.loop.now
        for connection in self.network.of(actor):
            connection.cut(late=late)

    def _link(self, event: Event) -> tuple[Actor, Actor]:
        client, _, service = event.target.partition("-")
        return self.actors[client], self.actors[service]

    def _cut(self, event: Event, *, late: bool) -> None:
        client, service = self._link(event)
        for connection in self.network.between(client, service):
            connection.cut(late=late)
            if late and event.kind is Kind.CUT:
                self.loop.hold(connection.client.out, event.seconds)
        self.network.refuse(client, service, event.seconds if not late else 0.0)

    def _hole(self, event: Event) -> None:
        client, service = self._link(event)
        for connection in self.network.between(client, service):
            for flow in connection.flows():
                self.loop.hold(flow, event.seconds)
        self.network.refuse(client, service, event.seconds)

    def _lose(self) -> None:
        self.history.lost = True
        self.history.finished_before_loss |= {
            job_id for job_id in self.job_ids() if self.redis.run([b"EXISTS", b"%b:result" % _record(job_id)])
        }

    def _remember(self) -> None:
        if not self._snapshots or self.loop.now - self._snapshots[-1][0] >= SNAPSHOT_S:
            self._snapshots.append((self.loop.now, self.redis.store.snapshot()))
            # The last but one is between half a second and a second old, or older.
            del self._snapshots[:-3]

    # What can be seen of it from outside

    def job_ids(self) -> list[str]:
        """The jobs that anybody has submitted."""
        return [call.got.id if call.got else call.job.id for call in self.history.calls]

    def has_queue(self) -> bool:
        """Whether the pool has its queue: the workers make it again if somebody has deleted it."""
        with suppress(SoftError):
            self.broker.queue(job_queue(POOL), owner=None)
            return True
        return False

    def waiting(self) -> int:
        """How many messages the pool's queue has, those with workers included."""
        queue = self.broker.queue(job_queue(POOL), owner=None)
        return queue.ready_count + queue.unacked_count

    def dead_letters(self) -> list[str]:
        """The ids of the dead letters."""
        queue = self.broker.queue(dead_queue(POOL), owner=None)
        return [str(message.properties.message_id) for message in queue.ready]

    async def in_time(self, done: Callable[[], bool], seconds: float, pause_s: float = 0.5) -> bool:
        """Wait until something is so."""
        until = self.loop.now + seconds
        while not done():
            if self.loop.now >= until:
                return False
            await asyncio.sleep(pause_s)
        return True


def _record(job_id: str) -> bytes:
    return b"inferfleet:job:{%b}" % job_id.encode()


_SERVICES: dict[str, Any] = {
    "amqp_url": f"amqp://guest:guest@broker:{AMQP_PORT}/",
    "redis_url": f"redis://redis:{REDIS_PORT}/0",
    # A turn that waits for the sweep waits for long.
    "session_ttl_s": 6 * 60 * 60,
}


@cache
def _worker_settings() -> WorkerSettings:
    return WorkerSettings(
        **_SERVICES,
        engine="simulated",
        model="simulated",
        max_running=2,
        look_ahead=1,
        journal_flush_streamed_s=0.3,
        heartbeat_interval_s=30.0,
        sweep_interval_s=SWEEP_INTERVAL_S,
        drain_timeout_s=1.0,
    )


@cache
def _producer_settings(name: str) -> ProducerSettings:
    return ProducerSettings(**_SERVICES, client_id=name, patience_s=PATIENCE_S[name])


class _Broker(VirtualHost):
    """The embedded broker, whose pool may be full for a while."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self.full_until = 0.0

    def publish(self, message: Message) -> PublishOutcome:
        if message.exchange == JOBS_EXCHANGE and self.full_until > self._now():
            return PublishOutcome(routed=1, accepted=False)
        return super().publish(message)


class _Sweep(Sweep):
    """The sweep of a worker, which may be hurried."""

    _hurried = False
    _until: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Sweep seldom, or often while hurried, until cancelled."""
        seldom_s = self._pause_s
        try:
            while True:
                self._pause_s = HURRIED_SWEEP_INTERVAL_S / REPORTS_PER_INTERVAL if self._hurried else seldom_s
                with suppress(TimeoutError):
                    async with asyncio.timeout(None) as self._until:
                        await super().run()
        finally:
            self._until = None

    def hurry(self, hurried: bool) -> None:
        """Sweep often, or seldom again."""
        if hurried != self._hurried:
            self._hurried = hurried
            if self._until is not None and not self._until.expired():
                self._until.reschedule(0.0)


class _Engine(SimulatedEngine):
    """The simulated engine, which tells what it generates."""

    def __init__(self, began: Callable[[str], Run], now: Callable[[], float]) -> None:
        super().__init__(model="simulated", max_running=2, engine_args={})
        self._began = began
        self._now = now

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        run = self._began(generation.id)
        try:
            async for event in super().generate(generation):
                yield event
        finally:
            run.ended_s = self._now()
