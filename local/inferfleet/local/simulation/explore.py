"""Looks for schedules that break a promise: at random, or depth first; and makes them short."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, islice

from inferfleet.local.simulation.forks import IN_A_ROW, Players
from inferfleet.local.simulation.plan import ACTORS, FAULTS, Event, Faults, Kind, Plan, Undisturbed, draw
from inferfleet.local.simulation.play import Played
from inferfleet.local.simulation.scenarios import SCENARIOS


@dataclass(slots=True)
class Tally:
    """How much was explored."""

    schedules: int = 0
    steps: int = 0
    different: set[str] = field(default_factory=set[str])
    """The traces that were seen: schedules that came to the same are one."""
    seconds: float = 0.0

    def add(self, played: Played) -> None:
        """Count one schedule."""
        self.schedules += 1
        self.steps += played.all_steps
        self.different.add(played.trace)


def undisturbed(players: Players, scenario: str, variants: Iterable[int] = ()) -> dict[int, Undisturbed]:
    """Play these variants, or all, once without anything that happens."""
    chosen = variants or range(SCENARIOS[scenario].variants)
    return {variant: Undisturbed.of(players.trace(Plan(scenario, variant))) for variant in chosen}


def at_random(
    scenario: str, runs: Mapping[int, Undisturbed], *, seed: int, first: int = 0, faults: Faults = FAULTS
) -> Iterator[Plan]:
    """Draw schedules for ever. Its number, the seed and the ``undisturbed`` runs say all of each."""
    for number in count(first):
        yield draw(f"{seed}:{number}", scenario=scenario, undisturbed=runs, faults=faults)


def depth_first(players: Players, plan: Plan, *, faults: Iterable[Event], depth: int) -> Iterator[Plan]:
    """The schedules with up to ``depth`` events more, each behind those that are there.

    A fault of a process is put only before its own steps: before those of others it comes to the same.
    Nothing is put behind an event that changed nothing.
    """
    seen: set[tuple[str, ...]] = set()
    events = list(faults)

    def behind(plan: Plan, left: int) -> Iterator[Plan]:
        lines = tuple(players.trace(plan))
        if lines in seen:
            return
        seen.add(lines)
        sources = [line.split()[1] for line in lines]
        first = max((event.step for event in plan.events), default=0)
        for step, source in islice(enumerate(sources), first, None):
            # One turn later of a process that goes on anyway is no other schedule.
            new = [Event(step, Kind.DELAY)] if not step or sources[step - 1] != source else []
            new += [
                replace(event, step=step)
                for event in events
                if not event.target or _concerns(event.target, source)
            ]
            for event in new:
                more = replace(plan, events=(*plan.events, event))
                yield more
                if left > 1:
                    yield from behind(more, left - 1)

    yield from behind(plan, depth)


def _concerns(target: str, source: str) -> bool:
    """Whether a step of this source has to do with a process or a link."""
    ends = set(source.partition(".")[0].split(">"))
    actor, _, service = target.partition("-")
    return actor in ends and (not service or len(ends) == 1 or service in ends)


EACH_FAULT = tuple(
    Event(0, kind, target, late, seconds)
    for actor in ACTORS
    for kind, target, late, seconds in (
        (Kind.CRASH, actor, False, 0.0),
        (Kind.CRASH, actor, True, 0.0),
        (Kind.STALL, actor, False, 20.0),
        *(
            fault
            for service in ("redis", "broker")
            for fault in (
                (Kind.REPEAT, f"{actor}-{service}", False, 0.0),
                (Kind.CUT, f"{actor}-{service}", False, 6.0),
                (Kind.CUT, f"{actor}-{service}", True, 6.0),
                (Kind.HOLE, f"{actor}-{service}", False, 20.0),
            )
        ),
    )
)
"""One of each kind for each process and link."""


def search(
    players: Players, plans: Iterable[Plan], tally: Tally, *, in_a_row: int = IN_A_ROW
) -> Iterator[Played]:
    """Play schedules; give those that break a promise."""
    began = time.perf_counter()
    for played in players.play_all(plans, in_a_row=in_a_row):
        tally.add(played)
        tally.seconds = time.perf_counter() - began
        if played.findings:
            yield played


def shortened(players: Players, played: Played) -> Played:
    """The shortest schedule to be had that breaks the same promise.

    What was played before it is left out, then faults, then delays.
    """
    kind = kind_of(played)
    shorter: Played | None = played
    while shorter is not None:
        played = shorter
        tried = (players.play(*plans) for plans in _shorter((*played.before, played.plan)))
        shorter = next((each for each in tried if kind in map(_kind, each.findings)), None)
    return played


def _shorter(plans: tuple[Plan, ...]) -> Iterator[tuple[Plan, ...]]:
    """All that is shorter by one thing, or by all that was played before."""
    *before, last = plans
    if before:
        yield (last,)
    for place in range(len(before)):
        yield (*before[:place], *before[place + 1 :], last)
    for place, plan in enumerate(plans):
        for event in sorted(plan.events, key=lambda event: event.kind is Kind.DELAY):
            yield (*plans[:place], plan.without(event), *plans[place + 1 :])


def kind_of(played: Played) -> str:
    """The first promise that it breaks."""
    return _kind(played.findings[0])


def _kind(finding: str) -> str:
    return finding.partition(" ")[0]
