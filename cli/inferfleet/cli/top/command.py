"""The command ``inferfleet top``."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Final

import typer

from inferfleet.cli.options import JsonFlag, producer_settings, refuse_given
from inferfleet.cli.printing import print_json
from inferfleet.cli.root import import_command
from inferfleet.cli.terminal import err, out
from inferfleet.cli.top.tables import (
    aborts,
    agents_table,
    ended_table,
    gates,
    outages,
    pools_table,
    rollouts_table,
    workers_table,
)
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.fleet_snapshot import FleetSnapshot
from inferfleet.schemas.settings import ProducerSettings

AWAY: Final = 3
"""The exit code if a service does not answer."""


def command(
    context: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot, and exit.")] = False,
    as_json: JsonFlag = False,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.2, max=3600.0, help="Seconds between two snapshots.")
    ] = 2.0,
) -> None:
    """Watch the fleet: pools, workers, runs of agents, jobs that have just ended, and why jobs wait."""
    # Show an outage at once, whatever patience is configured.
    settings = producer_settings().model_copy(update={"patience_s": 0.0})
    if once:
        refuse_given(context, ["interval_s"], "--once prints one snapshot: leave one of them out")
        _print(asyncio.run(_snapshot(settings)), as_json=as_json)
        return
    if as_json:
        raise typer.BadParameter("--json prints one snapshot: add --once")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter("the live view needs a terminal: add --once to print one snapshot")
    # Only the live view needs the extra.
    import_command("inferfleet top", "inferfleet.cli.top.app", extra="top").run_top(settings, interval_s)


async def _snapshot(settings: ProducerSettings) -> FleetSnapshot:
    async with Fleet.connect(settings) as fleet:
        return await fleet.watch.snapshot()


def _print(snapshot: FleetSnapshot, *, as_json: bool) -> None:
    if as_json:
        print_json(snapshot)
    else:
        for make in (pools_table, rollouts_table, agents_table, workers_table, ended_table):
            if (table := make(snapshot)).rows:
                out("".join(f"{text}\n" for text in table.lines()) + "\n")
        for pool in snapshot.pools:
            for gate in gates(pool):
                out(f"{gate}\n")
        for abort in aborts(snapshot.rollouts):
            out(f"{abort}\n")
    for outage in outages(snapshot):
        err(f"inferfleet: {outage}\n")
    if snapshot.unreachable:
        raise typer.Exit(AWAY)
