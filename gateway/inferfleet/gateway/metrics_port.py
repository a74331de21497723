"""The port for Prometheus, apart from the API, whose callers must not see what other tenants do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.wire.address import host_and_port
from inferfleet.wire.http_port import listening

logger = logging.getLogger(__name__)

METRICS_PATH: Final = "/metrics"


@asynccontextmanager
async def serving_metrics(settings: GatewaySettings, metrics: GatewayMetrics) -> AsyncGenerator[None]:
    """Serve the metrics while the block runs, if the settings name a port.

    Raises:
        ConfigurationError: The port is taken.

    """
    host, port = settings.metrics_host, settings.metrics_port
    if port is None:
        yield
        return

    async def scrape(_: web.Request) -> web.Response:
        # Writing some thousand lines would hold up the event loop that serves the API.
        body = await asyncio.to_thread(metrics.exposition)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.router.add_get(METRICS_PATH, scrape)
    async with listening(app, host=host, port=port, option="--metrics-port") as bound:
        where = host_and_port(host, bound)
        logger.info("serving metrics on http://%s%s", where, METRICS_PATH, extra={"port": bound})
        yield
