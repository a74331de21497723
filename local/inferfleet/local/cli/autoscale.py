"""``inferfleet autoscale``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from inferfleet.cli.options import JsonFlag, refuse_given
from inferfleet.local.autoscaler.live import Usage, autoscale
from inferfleet.local.autoscaler.measure import needs_management, open_measurer
from inferfleet.local.autoscaler.plot import check_plot, draw
from inferfleet.local.autoscaler.profile import EngineProfile, read_profile
from inferfleet.local.autoscaler.report import Reporter
from inferfleet.local.autoscaler.scaled_object import ScaledObject, read_scaled_object
from inferfleet.local.autoscaler.simulate import simulate
from inferfleet.local.autoscaler.trace import read_trace
from inferfleet.local.cli.options import ServicesOption, sigterm_as_interrupt
from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas.printable import printable
from inferfleet.schemas.settings import (
    ProducerSettings,
    ServiceSettings,
    WorkerSettings,
    read_settings,
)
from inferfleet.worker.log import lines_to_stderr

LIVE_ALONE: Final = (
    "engine",
    "model",
    "services",
    "management_url",
    "prometheus_url",
    "speedup",
    "until_idle",
)
SIMULATED_ALONE: Final = ("engine_profile", "startup_s", "plot")


def command(
    context: typer.Context,
    *,
    scaledobject: Annotated[
        Path, typer.Option(metavar="FILE", help="Manifest file; objects of other kinds are skipped.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the ScaledObject, if the file has several.")
    ] = None,
    engine: Annotated[str | None, typer.Option(metavar="NAME", help="Engine that the workers run.")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or name.")] = None,
    services: ServicesOption = ServicesChoice.AUTO,
    management_url: Annotated[
        str | None,
        typer.Option(
            envvar="INFERFLEET_MANAGEMENT_URL",
            help="RabbitMQ's HTTP API if you give URLs: http://user:password@host:15672, or a file:///… that "
            "holds it.",
        ),
    ] = None,
    prometheus_url: Annotated[
        str | None, typer.Option(help="Query this Prometheus instead of the manifest's serverAddress.")
    ] = None,
    simulate_trace: Annotated[
        Path | None,
        typer.Option(
            "--simulate",
            metavar="TRACE.csv",
            help="Simulate a trace of arrivals instead, without any server.",
        ),
    ] = None,
    engine_profile: Annotated[
        str, typer.Option(help="Speed of a simulated replica: a profile name or a JSON file.")
    ] = "llama-3.1-8b-h100",
    startup_s: Annotated[
        float | None, typer.Option(min=0, help="Simulated seconds until a new replica is ready.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot the simulation to a .png or .svg file.")
    ] = None,
    speedup: Annotated[
        float, typer.Option(min=0.1, max=100, help="Divide the manifest's times by this factor.")
    ] = 1.0,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Exit when the fleet first returns to idle.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Scale worker processes on this machine as KEDA and the HPA would scale pods, by the same manifest.

    Workers read every INFERFLEET_ variable that `inferfleet worker` reads; their pool is that of the
    manifest's queue. With --simulate the command starts nothing, and makes the same decisions for a trace of
    arrivals. The trace's columns are time_s, priority, prompt_tokens, output_tokens and, if there are several
    pools, pool.
    """
    if simulate_trace is None:
        refuse_given(context, SIMULATED_ALONE, "is only for a simulation: give --simulate TRACE.csv too")
    else:
        refuse_given(context, LIVE_ALONE, "is not for a simulation: leave it or --simulate out")
    with lines_to_stderr(_ToRead("%(message)s")) as log:
        logging.basicConfig(handlers=[log], force=True)
        wanted = read_scaled_object(scaledobject, name=name)
        reporter = Reporter(as_json=as_json, say=log.say)
        for remark in wanted.remarks:
            reporter.say(remark)
        if simulate_trace is not None:
            _simulate(
                wanted,
                trace=simulate_trace,
                profile=read_profile(engine_profile),
                startup_s=startup_s,
                plot=plot,
                reporter=reporter,
            )
            return
        worker = read_settings(WorkerSettings, engine=engine, model=model).model_copy(
            update={"pool": wanted.pool, "worker_id": f"{wanted.target or wanted.name}-{os.getpid()}"}
        )
        given = read_settings(ServiceSettings)
        running = running_services(
            services,
            amqp_url=given.amqp_url if "amqp_url" in given.model_fields_set else None,
            redis_url=given.redis_url if "redis_url" in given.model_fields_set else None,
            management=needs_management(wanted.triggers),
        )
        with sigterm_as_interrupt(), running as chosen:
            reporter.say(chosen.announcement)
            if chosen.kind is not ServicesChoice.URLS:
                reporter.say(f"export INFERFLEET_AMQP_URL={chosen.amqp_url}")
                reporter.say(f"export INFERFLEET_REDIS_URL={chosen.redis_url}")
            usage = asyncio.run(
                _autoscale(
                    wanted,
                    worker=worker,
                    services=chosen,
                    management_url=management_url or chosen.management_url,
                    prometheus_url=prometheus_url,
                    reporter=reporter,
                    speedup=speedup,
                    until_idle=until_idle,
                )
            )
        reporter.ended(most=usage.most, changes=usage.changes, worker_s=usage.worker_s)


class _ToRead(logging.Formatter):
    """Formats lines for a person; for a terminal, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        text = super().format(record)
        return printable(text) if sys.stderr.isatty() else text


def _simulate(
    wanted: ScaledObject,
    *,
    trace: Path,
    profile: EngineProfile,
    startup_s: float | None,
    plot: Path | None,
    reporter: Reporter,
) -> None:
    if plot is not None:
        check_plot(plot)
    if startup_s is not None:
        profile = profile.model_copy(update={"load_s": startup_s})
    outcome = simulate(wanted, read_trace(trace, pool=wanted.pool), profile)
    for change in outcome.changes:
        reporter.changed(change)
    reporter.summed_up(outcome.summary())
    if plot is not None:
        draw(outcome, plot, title=f"{wanted.name}: {wanted.min_replicas} to {wanted.max_replicas} replicas")


async def _autoscale(
    wanted: ScaledObject,
    *,
    worker: WorkerSettings,
    services: Services,
    management_url: str | None,
    prometheus_url: str | None,
    reporter: Reporter,
    speedup: float,
    until_idle: bool,
) -> Usage:
    urls = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
    async with open_measurer(
        wanted.triggers,
        amqp_url=services.amqp_url,
        management_url=management_url,
        prometheus_url=prometheus_url,
    ) as measurer:
        await _declare(wanted.pool, read_settings(ProducerSettings, **urls))
        reporter.say(
            f"watching {wanted.name}: pool {wanted.pool}, {wanted.min_replicas} to {wanted.max_replicas}"
        )
        return await autoscale(
            wanted,
            measurer=measurer,
            worker=worker.model_copy(update=urls),
            reporter=reporter,
            speedup=speedup,
            until_idle=until_idle,
        )


async def _declare(pool: str, settings: ProducerSettings) -> None:
    """Declare the queue, as a Job does in the cluster, because there is no worker yet to do it."""
    publisher = Publisher(settings)
    try:
        await publisher.declare_pool(pool)
    finally:
        await publisher.aclose()
