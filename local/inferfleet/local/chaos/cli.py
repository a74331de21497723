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
from inferfleet.local.chaos.soak import SoakOptions, SoakReport, soak
from inferfleet.schemas.settings import QueueType

JOBS_PER_MINUTE = 900


def command(
    *,
    seed: Annotated[int | None, typer.Option(help="Random seed for the faults and jobs.")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes during which faults are injected.")] = 10.0,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help=f"Total number of jobs; by default {JOBS_PER_MINUTE} per minute."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes.")] = 4,
    empty_redis: Annotated[
        bool, typer.Option("--empty-redis", help="Also empty Redis now and then.")
    ] = False,
    queue_type: Annotated[QueueType, typer.Option(help="Queue type of the pool.")] = QueueType.CLASSIC,
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
    folder: Annotated[
        Path | None, typer.Option(help="Folder for logs and ledgers; discarded by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Submit jobs to a fleet while killing, cutting off and restarting all its parts; then check the history.

    The command starts its own services and leaves nothing behind. Exits with 1 if a promise was broken.
    """
    options = SoakOptions(
        seed=random.SystemRandom().randrange(1_000_000) if seed is None else seed,
        minutes=minutes,
        jobs=max(1, round(JOBS_PER_MINUTE * minutes)) if jobs is None else jobs,
        workers=workers,
        empty_redis=empty_redis,
        queue_type=queue_type,
        shared_keys=shared_keys,
        garbage=garbage,
        another_model=another_model,
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
    if report.excused:
        sys.stdout.write(f"{'excused':12} {report.excused} ended, unread, just before Redis lost all data\n")
    for name, counts in (
        ("ends", report.ends),
        ("faults", report.faults),
        ("violations", report.violations),
    ):
        text = ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none"
        sys.stdout.write(f"{name:12} {text}\n")
    sys.stdout.write(
        f"{'tokens':12} {report.waste.generated} generated, at most {report.waste.wasted} of them for "
        f"nothing ({report.waste.ratio:.1%})\n"
    )
    for finding in report.findings[:50]:
        out(f"  {finding.violation}  {finding.subject}  {finding.detail}\n")
