"""The exporter's process: it samples the services and serves the metrics."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

from aiohttp import web

from inferfleet.exporter.management import ManagementQueues
from inferfleet.exporter.metrics import FleetCollector, exposition
from inferfleet.exporter.passive import PassiveQueues
from inferfleet.exporter.queues import Queues
from inferfleet.exporter.sampler import Sampler
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.wire.http_port import listening
from inferfleet.wire.redis.connection import closing_redis, command_pipeline, redis_client
from inferfleet.wire.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

LIVE_PATH = "/health/live"
METRICS_PATH = "/metrics"

STALE_AFTER = 4
"""How many sample intervals a snapshot is valid for."""


async def run_exporter(settings: ExporterSettings) -> None:
    """Serve until SIGTERM or SIGINT. Starts and continues even if RabbitMQ or Redis is unreachable.

    Raises:
        ConfigurationError: The port is taken.

    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with serving(settings) as port:
        logger.info("serving metrics on port %d at %s", port, METRICS_PATH)
        await stopping.wait()


@asynccontextmanager
async def serving(settings: ExporterSettings) -> AsyncGenerator[int]:
    """Sample and serve while the block runs. Yield the port, which is a free one if the setting is 0."""
    queues: Queues = (
        ManagementQueues(settings.management_url, amqp_url=settings.amqp_url)
        if settings.management_url is not None
        else PassiveQueues(settings.amqp_url)
    )
    async with aclosing(queues), closing_redis(redis_client(settings.redis_url, connections=2)) as client:
        pipeline = command_pipeline(client, patience_s=0.0)
        sampler = Sampler(queues=queues, pipeline=pipeline, pools=settings.pools)
        collector = FleetCollector(
            lambda: sampler.latest, stale_after_s=STALE_AFTER * settings.sample_interval_s
        )
        # With a task group a bug in the sampler ends the process, instead of leaving an empty page.
        async with _http(settings, collector) as port, asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(pipeline.run()),
                tasks.create_task(sampler.run(interval_s=settings.sample_interval_s)),
            ]
            try:
                yield port
            finally:
                await cancel_and_wait(*running)


@asynccontextmanager
async def _http(settings: ExporterSettings, collector: FleetCollector) -> AsyncGenerator[int]:
    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(
            body=exposition(collector), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    app = web.Application()
    app.router.add_get(LIVE_PATH, live)
    app.router.add_get(METRICS_PATH, scrape)
    async with listening(app, host=settings.http_host, port=settings.http_port) as port:
        yield port
