"""``inferfleet autoscale``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from inferfleet.cli.options import JsonFlag
from inferfleet.local.autoscaler.live import Usage, autoscale
from inferfleet.local.autoscaler.measure import needs_management, open_measurer
from inferfleet.local.autoscaler.report import Reporter
from inferfleet.local.autoscaler.scaled_object import ScaledObject, read_scaled_object
from inferfleet.local.cli.options import ServicesOption, sigterm_as_interrupt
from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas.settings import (
    EngineKind,
    ProducerSettings,
    ServiceSettings,
    WorkerSettings,
    read_settings,
)


def command(
    *,
    scaledobject: Annotated[
        Path, typer.Option(metavar="FILE", help="The manifest; other kinds in it are skipped.")
    ],
    name: Annotated[str | None, typer.Option(help="Which ScaledObject, if the file has several.")] = None,
    engine: Annotated[EngineKind | None, typer.Option(help="What generates.")] = None,
    model: Annotated[str | None, typer.Option(help="The model: a folder or a name.")] = None,
    services: ServicesOption = ServicesChoice.AUTO,
    management_url: Annotated[
        str | None,
        typer.Option(
            envvar="INFERFLEET_MANAGEMENT_URL",
            help="RabbitMQ's HTTP API, as http://user:password@host:15672, if URLs are given.",
        ),
    ] = None,
    prometheus_url: Annotated[
        str | None, typer.Option(help="Ask this Prometheus instead of the manifest's serverAddress.")
    ] = None,
    speedup: Annotated[
        float, typer.Option(min=0.1, max=100, help="Make the manifest's seconds so many times shorter.")
    ] = 1.0,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End at the first return to rest, instead of Ctrl-C.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Scale worker processes on this machine as KEDA and the HPA would scale pods, by the same manifest.

    Workers take every INFERFLEET_ variable that `inferfleet worker` takes; their pool is that of the
    manifest's queue.
    """
    wanted = read_scaled_object(scaledobject, name=name)
    reporter = Reporter(as_json=as_json)
    for remark in wanted.remarks:
        reporter.say(remark)
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
    """Declare the queue, as a Job does in the cluster: with no worker yet, nobody else would."""
    publisher = Publisher(settings)
    try:
        await publisher.declare_pool(pool)
    finally:
        await publisher.aclose()
