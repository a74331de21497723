"""``inferfleet gateway``."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
import uvloop

from inferfleet.gateway.server import run_gateway
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.schemas.settings import LogFormat, read_settings
from inferfleet.worker.log import logging_to_stderr


def command(
    *,
    http_host: Annotated[str | None, typer.Option(help="Address to listen on, 127.0.0.1 by default.")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port to listen on, 8000 by default; 0 picks a free one.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port for Prometheus, none by default; 0 picks a free one.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Pool for requests that name no model.")] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="Log format: JSON lines or console text.")
    ] = None,
) -> None:
    """Serve OpenAI's API in front of the queue, and jobs over HTTP, until SIGTERM.

    Each option has an environment variable, such as INFERFLEET_HTTP_PORT, which the option overrides.
    """
    remarks: list[str] = []
    settings = read_settings(
        GatewaySettings,
        remarks.append,
        http_host=http_host,
        http_port=http_port,
        metrics_port=metrics_port,
        pool=pool,
        log_format=log_format or (LogFormat.CONSOLE if sys.stderr.isatty() else None),
    )
    with logging_to_stderr(settings):
        for remark in remarks:
            logging.getLogger(__name__).warning("%s", remark)
        uvloop.run(run_gateway(settings))
