"""``inferfleet demo``."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import orjson
import typer
from rich.console import Console

from inferfleet.cli.options import JsonFlag
from inferfleet.local.cli.options import ServicesOption, chosen_services, sigterm_as_interrupt
from inferfleet.local.demo.run import run_demo
from inferfleet.local.demo.view import LivePicture, PlainLines, View
from inferfleet.local.demo.worker_settings import worker_settings
from inferfleet.local.demo.workload import QUESTIONS, SIMULATED, workload_for
from inferfleet.local.services import ServicesChoice


def command(
    *,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Total number of jobs, including the urgent one. "
            f"[default: {SIMULATED.jobs}, or {QUESTIONS.jobs} questions for a real engine]",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of worker processes.")] = 2,
    engine: Annotated[str, typer.Option(metavar="NAME", help="Inference engine to run.")] = "simulated",
    model: Annotated[
        str | None, typer.Option(help="Model folder or name. The simulated engine needs none.")
    ] = None,
    services: ServicesOption = ServicesChoice.AUTO,
    seed: Annotated[int, typer.Option(help="Random seed for the workload.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Watch a fleet work: services, workers, a mixed load, and an urgent job whose worker is killed.

    Workers read every INFERFLEET_ variable that `inferfleet worker` reads, such as INFERFLEET_MAX_RUNNING
    and INFERFLEET_ENGINE_ARGS. Exits with 1 if a job failed or was lost, or if the urgent answer restarted.
    With one worker, the demo kills no worker.
    """
    worker = worker_settings(engine, model, workers=workers)
    console = Console()
    view: View = LivePicture(console) if console.is_terminal and not as_json else PlainLines()
    with sigterm_as_interrupt(), chosen_services(services) as running:
        print(running.announcement, file=sys.stderr if as_json else sys.stdout, flush=True)
        with view:
            report = asyncio.run(
                run_demo(
                    services=running,
                    worker=worker,
                    workers=workers,
                    jobs=jobs or workload_for(engine).jobs,
                    seed=seed,
                    view=view,
                )
            )
    if as_json:
        sys.stdout.write(orjson.dumps(report.as_json()).decode() + "\n")
    else:
        console.print(report.as_table())
    if not report.flawless:
        raise typer.Exit(1)
