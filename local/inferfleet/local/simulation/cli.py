"""``inferfleet-explore``: play schedules of a simulated fleet, and print those that break a promise."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache, partial
from itertools import islice
from typing import Annotated

import orjson
import typer

from inferfleet.cli.failing import report_errors
from inferfleet.local.simulation.explore import (
    EACH_FAULT,
    Tally,
    at_random,
    depth_first,
    kind_of,
    search,
    shortened,
    undisturbed,
)
from inferfleet.local.simulation.forks import IN_A_ROW, Players, players
from inferfleet.local.simulation.mutations import MUTATIONS
from inferfleet.local.simulation.plan import FAULTS, LOSSES, Kind, Plan, Undisturbed, parse_row
from inferfleet.local.simulation.play import Played
from inferfleet.local.simulation.scenarios import SCENARIOS

PROGRESS_S = 60.0
"""How often a run says how far it is."""


def command(
    *,
    minutes: Annotated[float, typer.Option(help="Minutes for all scenarios together.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed for the schedules.")] = 1,
    schedules: Annotated[
        int | None, typer.Option(help="Maximum number of schedules per scenario or mutation.")
    ] = None,
    first: Annotated[
        int, typer.Option(min=0, help="Number of the first random schedule: go on where another run ended.")
    ] = 0,
    scenario: Annotated[list[str] | None, typer.Option(help="Play only this scenario; repeatable.")] = None,
    losses: Annotated[bool, typer.Option("--losses", help="Also let Redis lose data.")] = False,
    depth: Annotated[
        int, typer.Option(min=0, help="Not at random: every event at every step, up to so many of them.")
    ] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Number of processes.")] = os.cpu_count() or 1,
    stop_after: Annotated[int, typer.Option(help="Stop a scenario after this many kinds of findings.")] = 3,
    replay: Annotated[
        str | None, typer.Option(help="Replay one schedule and report what comes of it.")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="With --replay, print each step.")] = False,
    mutation: Annotated[str | None, typer.Option(help="Apply this mutation first.")] = None,
    mutations: Annotated[
        bool, typer.Option("--mutations", help="Report how soon each mutation is found.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Play schedules of a simulated fleet: who goes on when, what breaks, which bytes come late.

    The product's own code runs, in virtual time. Exits with 1 if a promise was broken.
    """
    found: list[Played] = []
    with report_errors():
        if mutations:
            after = _try_mutations(seed, at_once, within=schedules, quiet=as_json)
            if as_json:
                sys.stdout.buffer.write(orjson.dumps(after) + b"\n")
            raise typer.Exit(1 if None in after.values() else 0)
        with players(at_once=at_once, mutation=mutation) as ready:
            if replay is not None:
                found = [_replayed(ready, parse_row(replay), trace=trace, as_json=as_json)]
            else:
                names = scenario or list(SCENARIOS)
                for name in names:
                    found += _explored(
                        ready,
                        name,
                        seed=seed,
                        seconds=minutes * 60 / len(names),
                        schedules=schedules,
                        first=first,
                        faults={**FAULTS, **(LOSSES if losses else {})},
                        depth=depth,
                        stop_after=stop_after,
                        quiet=as_json,
                    )
    if as_json:
        sys.stdout.buffer.write(orjson.dumps([_as_json(played) for played in found]) + b"\n")
    raise typer.Exit(1 if any(played.findings for played in found) else 0)


def _replayed(ready: Players, plans: tuple[Plan, ...], *, trace: bool, as_json: bool) -> Played:
    if trace:
        _say("\n".join(ready.trace(*plans)))
    played = ready.play(*plans)
    if not as_json:
        _say(f"{played.all_steps} steps, trace {played.trace}")
        for finding in played.findings:
            _say(f"  {finding}")
    return played


def _explored(
    ready: Players,
    name: str,
    *,
    seed: int,
    seconds: float,
    schedules: int | None,
    first: int,
    faults: Mapping[Kind, int],
    depth: int,
    stop_after: int,
    quiet: bool,
) -> list[Played]:
    tally, kinds = Tally(), dict[str, Played]()
    deadline = time.perf_counter() + seconds
    plans: Iterator[Plan]
    if depth:
        plans = (
            plan
            for variant in range(SCENARIOS[name].variants)
            for plan in depth_first(ready, Plan(name, variant), faults=EACH_FAULT, depth=depth)
        )
    else:
        plans = at_random(name, undisturbed(ready, name), seed=seed, first=first, faults=faults)

    def in_time(plans: Iterator[Plan]) -> Iterator[Plan]:
        told = time.perf_counter()
        for plan in plans:
            now = time.perf_counter()
            if now > deadline or len(kinds) >= stop_after:
                return
            if now > told + PROGRESS_S and not quiet:
                told = now
                _say(f"{name}: {_counted(tally)}, from {first} on")
            yield plan

    # Which step is which is known of a fresh world only.
    in_a_row = 1 if depth else IN_A_ROW
    for played in search(ready, in_time(islice(plans, schedules)), tally, in_a_row=in_a_row):
        if kind_of(played) not in kinds:
            kinds[kind_of(played)] = played
            if not quiet:
                _say(f"{name}: {played.schedule} {played.findings[0]}")
    shortest = [shortened(ready, played) for played in kinds.values()]
    if not quiet:
        _say(f"{name}: {_counted(tally)}, {len(shortest)} kinds of findings")
        for played in shortest:
            _say(f"  {played.schedule}")
            for finding in played.findings:
                _say(f"    {finding}")
    return shortest


def _counted(tally: Tally) -> str:
    rate = tally.schedules / max(tally.seconds, 0.001)
    return (
        f"{tally.schedules} schedules ({len(tally.different)} different), {tally.steps} steps, "
        f"{rate:.0f} a second"
    )


def _try_mutations(seed: int, at_once: int, *, within: int | None, quiet: bool) -> dict[str, int | None]:
    """Say of each mutation after how many schedules it is found; only of those found ``within`` so many."""
    found: dict[str, int | None] = {}
    with players(at_once=0) as unchanged:
        # Many mutations show in one scenario.
        runs_of = cache(partial(undisturbed, unchanged))
        for name, mutation in MUTATIONS.items():
            if within is None or mutation.within <= within:
                runs = runs_of(mutation.scenario, mutation.variants)
                after = _found_after(name, unchanged, runs, seed=seed, at_once=at_once, show=not quiet)
                found[name] = after
                if not quiet:
                    _say(
                        f"{name}: "
                        + ("not found in" if after is None else f"{after} of")
                        + f" {mutation.within}"
                    )
    return found


def _found_after(
    name: str, unchanged: Players, runs: Mapping[int, Undisturbed], *, seed: int, at_once: int, show: bool
) -> int | None:
    """How many schedules it takes to find a mutation; ``None`` if more than it may take."""
    mutation, tally = MUTATIONS[name], Tally()
    with players(at_once=at_once, mutation=name) as ready:
        plans = at_random(mutation.scenario, runs, seed=seed, faults=mutation.faults)
        for played in search(ready, islice(plans, mutation.within), tally):
            if unchanged.play(*played.before, played.plan).findings:
                continue
            if show:
                _say(f"  {played.schedule} {played.findings[0]}")
            return tally.schedules
    return None


def _as_json(played: Played) -> dict[str, object]:
    return {
        "schedule": played.schedule,
        "findings": played.findings,
        "steps": played.all_steps,
        "trace": played.trace,
    }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command)
    app()
