"""A schedule: which world, and what happens at which step beyond the ordinary taking of turns.

``session.2/40:delay/52:crash=w1/60:cut=w2-redis,late,6`` is the whole of one, and plays the same each time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Kind(StrEnum):
    """What may happen."""

    DELAY = "delay"
    """Whatever would go next waits until nothing else can go on."""

    STALL = "stall"
    """A process is stopped for so many seconds, and wakes up."""

    CRASH = "crash"
    """A process dies. What it has sent is lost, or ``late``: it arrives all the same."""

    CUT = "cut"
    """The connections of a process to a service break. What it has sent is lost, and no new one is made for
    so many seconds; or ``late``: it arrives in so many seconds, when it may have been sent again."""

    REPEAT = "repeat"
    """The connections break behind what was sent: it is carried out, its answers are lost, and it is sent
    again."""

    HOLE = "hole"
    """Nothing gets through between a process and a service for so many seconds; then all of it does."""

    JUMP = "jump"
    """So many seconds pass in which nobody runs."""

    DRAIN = "drain"
    """A worker is told to leave."""

    FULL = "full"
    """The pool's queue refuses what is published, for so many seconds."""

    PURGE = "purge"
    """Somebody empties the pool's queue. What is with workers stays there."""

    DELETE = "delete"
    """Somebody deletes the pool's queue. What is with workers does not come back when they die."""

    EMPTY = "empty"
    """Redis loses all its data."""

    ROLLBACK = "rollback"
    """Redis comes back with the data that it had a second before."""


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """One thing that happens, before step ``step``; if ``busy``, once bytes are under way on that link."""

    step: int
    kind: Kind
    target: str = ""
    late: bool = False
    seconds: float = 0.0
    busy: bool = False

    def __str__(self) -> str:
        words = [self.target] if self.target else []
        words += ["late"] if self.late else []
        words += [f"{self.seconds:g}"] if self.seconds else []
        words += ["busy"] if self.busy else []
        return f"{self.step}:{self.kind}" + ("=" if words else "") + ",".join(words)

    @classmethod
    def parse(cls, text: str) -> Event:
        """Read what ``str`` writes.

        Raises:
            ValueError: It is something else.

        """
        step, _, rest = text.partition(":")
        kind, _, given = rest.partition("=")
        event = cls(int(step), Kind(kind))
        for word in filter(None, given.split(",")):
            if word == "late":
                event = replace(event, late=True)
            elif word == "busy":
                event = replace(event, busy=True)
            elif word[0].isdigit():
                event = replace(event, seconds=float(word))
            else:
                event = replace(event, target=word)
        return event


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule of a scenario."""

    scenario: str
    variant: int = 0
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        return "/".join([f"{self.scenario}.{self.variant}", *map(str, self.events)])

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read what ``str`` writes.

        Raises:
            ValueError: It is something else.

        """
        world, *events = text.split("/")
        scenario, _, variant = world.partition(".")
        return cls(scenario, int(variant or 0), tuple(map(Event.parse, events)))

    @property
    def loses(self) -> bool:
        """Whether a service loses anything. RabbitMQ drops what comes from a delay queue to a full one."""
        losing = LOSING | {Kind.FULL} if self.scenario == "later" else LOSING
        return any(event.kind in losing for event in self.events)

    def without(self, event: Event) -> Plan:
        """The same without one event."""
        return replace(self, events=tuple(each for each in self.events if each is not event))


def parse_row(text: str) -> tuple[Plan, ...]:
    """Read schedules that are played in a row, joined by ``+``.

    Raises:
        ValueError: It is something else.

    """
    return tuple(map(Plan.parse, text.split("+")))


ACTORS = ("p1", "p2", "w1", "w2")
SERVICES = ("redis", "broker")
SECONDS = (0.0, 1.0, 6.0, 20.0)
"""Around nothing, a time limit, and a lease."""

STOPPED_S = (1.0, 20.0, 60.0)
"""A process that is stopped for a minute has lost its connection to the broker when it wakes up."""

FAULTS: Mapping[Kind, int] = {
    Kind.STALL: 2,
    Kind.CRASH: 4,
    Kind.CUT: 5,
    Kind.REPEAT: 3,
    Kind.HOLE: 2,
    Kind.JUMP: 1,
    Kind.FULL: 1,
    Kind.PURGE: 1,
    Kind.DELETE: 1,
    Kind.DRAIN: 1,
}
"""How often each is drawn."""

LOSSES: Mapping[Kind, int] = {Kind.EMPTY: 1, Kind.ROLLBACK: 1}
"""Drawn only if asked for: they cost what nobody else has."""

LOSING = frozenset({Kind.PURGE, Kind.DELETE, *LOSSES})
"""After these a job may have no message, and wait for the sweep."""

Link = tuple[str, str]
"""A client and a service."""


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run in which nothing happens: how many steps it has, and which bytes arrive in which of them."""

    steps: int
    writes: Mapping[Link, Sequence[Sequence[int]]]
    """On each link, for writes of each size, all their steps. Some are rare, and matter as much."""

    @classmethod
    def of(cls, trace: Sequence[str]) -> Undisturbed:
        """Read a trace of it."""
        writes: dict[Link, dict[tuple[str, str], list[int]]] = {}
        for step, line in enumerate(trace):
            _, source, size, *_ = line.split()
            sender, _, receiver = source.partition(".")[0].partition(">")
            link = (sender, receiver) if receiver in SERVICES else (receiver, sender)
            if link[0] in ACTORS:
                writes.setdefault(link, {}).setdefault((sender, size), []).append(step)
        return cls(len(trace), {link: list(of_size.values()) for link, of_size in writes.items()})


Faults = Mapping[Kind, int] | Sequence[Event]
"""How often each kind is drawn; or nothing but these, at steps that are drawn."""


def draw(seed: str, *, scenario: str, undisturbed: Mapping[int, Undisturbed], faults: Faults) -> Plan:
    """Draw a schedule of a few events: most faults need only two or three.

    ``undisturbed`` has a run of each variant to draw from. Faults happen about when bytes are under way, and
    mostly to one of their ends.
    """
    chance = random.Random(seed)  # noqa: S311 - a repeatable schedule
    variant = chance.choice(list(undisturbed))
    run = undisturbed[variant]
    events = [Event(chance.randrange(run.steps), Kind.DELAY) for _ in range(chance.choice(_DELAYS))]
    at_most = _FAULTS if isinstance(faults, Mapping) else _FAULTS[1:]
    for _ in range(chance.choice(at_most) if faults else 0):
        at, event = _drawn(chance, faults, run)
        step = max(0, chance.choice(at) + chance.choice(_AWAY))
        busy = event.kind in _OF_LINKS and chance.random() < _BUSY
        events.append(replace(event, step=step, busy=busy))
    return Plan(scenario, variant, tuple(sorted(events)))


def _drawn(chance: random.Random, faults: Faults, run: Undisturbed) -> tuple[Sequence[int], Event]:
    """Draw a fault, and the writes about which it happens."""
    if not isinstance(faults, Mapping):
        event = chance.choice(faults)
        client, _, service = event.target.partition("-")
        its = [
            at
            for link, writes in run.writes.items()
            if link[0] == client and service in ("", link[1])
            for at in writes
        ]
        # Without any, it is as good at any time.
        return chance.choice(its or [range(run.steps)]), event
    link = client, service = chance.choice(list(run.writes))
    at = chance.choice(run.writes[link])
    if chance.random() < _ELSEWHERE:
        client, service = chance.choice(ACTORS), chance.choice(SERVICES)
    kind = chance.choices(list(faults), list(faults.values()))[0]
    return at, _fault(chance, kind, client, service)


_DELAYS = (0, 0, 1, 2, 4, 8)
_FAULTS = (0, 1, 1, 2, 2, 3)
_AWAY = (-8, -3, 0, 0, 1, 1, 2, 5)
"""How far from a step in which bytes arrive: before they are sent, before they arrive, or a little later."""

_ELSEWHERE = 0.2
_OF_LINKS = frozenset({Kind.CRASH, Kind.CUT, Kind.REPEAT, Kind.HOLE})
_BUSY = 0.5
"""Steps have other numbers as soon as anything has gone differently."""


def _fault(chance: random.Random, kind: Kind, client: str, service: str) -> Event:
    link = f"{client}-{service}"
    match kind:
        case Kind.STALL:
            return Event(0, kind, client, seconds=chance.choice(STOPPED_S))
        case Kind.CRASH:
            return Event(0, kind, client, late=chance.random() < 0.5)
        case Kind.CUT:
            return Event(0, kind, link, late=chance.random() < 0.5, seconds=chance.choice(SECONDS))
        case Kind.REPEAT:
            return Event(0, kind, link)
        case Kind.HOLE:
            return Event(0, kind, link, seconds=chance.choice(SECONDS[1:]))
        case Kind.JUMP:
            return Event(0, kind, seconds=chance.choice(STOPPED_S[1:]))
        case Kind.FULL:
            return Event(0, kind, seconds=chance.choice(SECONDS[1:]))
        case Kind.DRAIN:
            return Event(0, kind, client if client.startswith("w") else chance.choice(("w1", "w2")))
        case Kind.PURGE | Kind.DELETE | Kind.EMPTY | Kind.ROLLBACK | Kind.DELAY:
            return Event(0, kind)
