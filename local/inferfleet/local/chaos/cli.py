"""``inferfleet-chaos``: runs a soak, prints its report, and exits with 1 if a promise was broken."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import orjson
import typer

from inferfleet.cli.failing import report_errors
from inferfleet.cli.standard_streams import open_standard_streams
from inferfleet.cli.terminal import err, out
from inferfleet.local.chaos.cluster import SIZE
from inferfleet.local.chaos.cluster_faults import ClusterFault, missing, possible_faults
from inferfleet.local.chaos.soak import SoakOptions, SoakReport, Topology, soak
from inferfleet.schemas.settings import QueueType

JOBS_PER_MINUTE = {Topology.SINGLE: 900, Topology.CLUSTER: 500}
"""What two cores can do beside the servers. Where jobs wait for long, a cluster can forget only rarely."""


def command(
    *,
    seed: Annotated[int | None, typer.Option(help="Random seed for the faults and jobs.")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes during which faults are injected.")] = 10.0,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Total number of jobs; by default 900 per minute, on a cluster 500."),
    ] = None,
    topology: Annotated[
        Topology, typer.Option(help="One RabbitMQ and one Redis, or three of each.")
    ] = Topology.SINGLE,
    faults: Annotated[
        list[ClusterFault] | None,
        typer.Option("--fault", help="A fault of the cluster's services; may be repeated. By default all."),
    ] = None,
    wait_replicas: Annotated[
        int,
        typer.Option(
            min=0,
            max=SIZE - 1,
            help="Number of Redis replicas that confirm each job and its end, so that none is forgotten.",
        ),
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes.")] = 4,
    empty_redis: Annotated[
        bool, typer.Option("--empty-redis", help="Also empty Redis now and then.")
    ] = False,
    queue_type: Annotated[
        QueueType | None,
        typer.Option(help="Queue type of the pool; by default quorum on a cluster, else classic."),
    ] = None,
    shared_keys: Annotated[
        bool,
        typer.Option(
            "--shared-keys", help="Have all producers submit every job with the same idempotency key."
        ),
    ] = False,
    garbage: Annotated[
        bool, typer.Option("--garbage", help="Have a foreign client publish messages that are not jobs.")
    ] = False,
    another_model: Annotated[
        bool, typer.Option("--another-model", help="Start some workers with another model.")
    ] = False,
    fair_shares: Annotated[
        bool, typer.Option("--fair-shares", help="Let the tenants of the jobs share the pool.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="New or empty folder for logs and ledgers; discarded by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Submit jobs to a fleet while killing, cutting off and restarting all its parts; then check the history.

    The command starts its own services and leaves nothing behind. Exits with 1 if a promise was broken.
    """
    clustered = topology is Topology.CLUSTER
    if clustered and (garbage or empty_redis):
        raise typer.BadParameter("--garbage and --empty-redis are for --topology single")
    if faults and not clustered:
        raise typer.BadParameter("--fault is for --topology cluster")
    if wait_replicas and not clustered:
        raise typer.BadParameter("--wait-replicas is for --topology cluster")
    if wait_replicas and ClusterFault.REDIS_EMPTIED in (faults or ()):
        raise typer.BadParameter(f"--wait-replicas cannot keep what {ClusterFault.REDIS_EMPTIED} deletes")
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"--folder {folder} is not empty; name a new folder, or empty this one")
    for fault in faults or ():
        if (reason := missing(fault)) is not None:
            raise typer.BadParameter(f"{fault} is not possible here: {reason}")
    if clustered and not faults:
        for fault in ClusterFault:
            if (reason := missing(fault)) is not None:
                _say(f"without {fault}: {reason}")
    options = SoakOptions(
        seed=random.SystemRandom().randrange(1_000_000) if seed is None else seed,
        minutes=minutes,
        jobs=max(1, round(JOBS_PER_MINUTE[topology] * minutes)) if jobs is None else jobs,
        workers=workers,
        empty_redis=empty_redis,
        queue_type=queue_type or (QueueType.QUORUM if clustered else QueueType.CLASSIC),
        shared_keys=shared_keys,
        garbage=garbage,
        another_model=another_model,
        fair_shares=fair_shares,
        topology=topology,
        # Replicas delete, too, what the master deletes.
        cluster_faults=frozenset(
            faults or possible_faults() - ({ClusterFault.REDIS_EMPTIED} if wait_replicas else set())
        ),
        wait_replicas=wait_replicas,
    )
    with tempfile.TemporaryDirectory(prefix="inferfleet-chaos-") as temporary:
        where = folder or Path(temporary)
        where.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(soak(options, folder=where, say=_say))
    if as_json:
        sys.stdout.write(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print(report)
    raise typer.Exit(0 if report.ok else 1)


def main() -> None:
    """Run the command line."""
    open_standard_streams()
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command)
    with report_errors():
        app(prog_name="inferfleet-chaos")


def _say(line: str) -> None:
    err(f"{line}\n")


def _print(report: SoakReport) -> None:
    sys.stdout.write(f"{'seed':12} {report.options.seed}\n{'jobs':12} {report.accepted}\n")
    if report.forgotten:
        sys.stdout.write(f"{'forgotten':12} {report.forgotten}, although they had to be on replicas\n")
    elif report.excused:
        sys.stdout.write(f"{'excused':12} {report.excused} ended, unread, just before Redis forgot them\n")
    for name, counts in (
        ("ends", report.ends),
        ("faults", report.faults),
        ("violations", report.violations),
    ):
        text = ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none"
        sys.stdout.write(f"{name:12} {text}\n")
    sys.stdout.write(
        f"{'tokens':12} {report.waste.generated} generated, {report.waste.wasted} of them wasted "
        f"({report.waste.ratio:.1%})\n"
    )
    for line in report.missed:
        out(f"  not hit  {line}\n")
    if report.untested:
        out(f"  never happened  {', '.join(report.untested)}\n")
    for finding in report.findings[:50]:
        out(f"  {finding.violation}  {finding.subject}  {finding.detail}\n")
