"""``inferfleet exporter``."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Annotated

import typer

from inferfleet.exporter.server import run_exporter
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.schemas.settings import LogFormat, read_settings
from inferfleet.worker.log import logging_to_stderr


def command(
    *,
    http_port: Annotated[
        int | None, typer.Option(help="Port for metrics and health, 9101 by default; 0 picks a free one.")
    ] = None,
    pools: Annotated[
        str | None,
        typer.Option(metavar="POOL,...", help="Pools to report even while they have no live worker."),
    ] = None,
) -> None:
    """Serve metrics of the whole fleet for Prometheus, until SIGTERM. One exporter per cluster is enough.

    Set INFERFLEET_MANAGEMENT_URL to RabbitMQ's HTTP API to get the oldest job's age and the backlog.
    """
    remarks: list[str] = []
    settings = read_settings(
        ExporterSettings,
        remarks.append,
        http_port=http_port,
        pools=pools,
        log_format=LogFormat.CONSOLE if sys.stderr.isatty() else None,
    )
    with logging_to_stderr(settings):
        for remark in remarks:
            logging.getLogger(__name__).warning("%s", remark)
        for name in ("aio_pika", "aiormq", "aiormq.connection"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if settings.management_url is None:
            logging.getLogger(__name__).warning(
                "INFERFLEET_MANAGEMENT_URL is not set: the oldest job's age and the backlog are missing, and "
                "unacked jobs are only those inside engines, according to the heartbeats"
            )
        asyncio.run(run_exporter(settings))
