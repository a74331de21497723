"""The worker's HTTP port: liveness, readiness and metrics."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.wire.http_port import listening
from inferfleet.worker.gpus import Gpus
from inferfleet.worker.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

LIVE_PATH = "/health/live"
READY_PATH = "/health/ready"
METRICS_PATH = "/metrics"


@asynccontextmanager
async def serve_http(
    *,
    host: str,
    port: int,
    heartbeat: Callable[[], Heartbeat],
    ready: Callable[[], bool],
    metrics: WorkerMetrics,
    lines_dropped: Callable[[], int] = lambda: 0,
) -> AsyncGenerator[int]:
    """Serve while the block runs. Yield the port, which is a free one if ``port`` is 0.

    ``/health/live`` answers 200 as long as the event loop runs. ``/health/ready`` answers 200 from the moment
    when the model is warm and the worker takes jobs until it drains, otherwise 503. An unreachable broker
    does not make a worker unready, because running jobs continue. A Redis that refuses what the worker needs
    does, because then no job makes progress. Both answers show the worker's heartbeat.

    Raises:
        ConfigurationError: The port is taken.

    """
    gpus = Gpus()

    def answer(status: int) -> web.Response:
        return web.Response(
            status=status, text=heartbeat().model_dump_json() + "\n", content_type="application/json"
        )

    async def live(_: web.Request) -> web.Response:
        return answer(200)

    async def is_ready(_: web.Request) -> web.Response:
        return answer(200 if ready() else 503)

    async def scrape(request: web.Request) -> web.Response:
        metrics.observe(
            heartbeat(),
            ready=ready(),
            lines_dropped=lines_dropped(),
            gpus=await gpus.ask(),
        )
        # Only OpenMetrics has exemplars. Prometheus asks for it.
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=metrics.exposition(encode), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get(LIVE_PATH, live)
    app.router.add_get(READY_PATH, is_ready)
    app.router.add_get(METRICS_PATH, scrape)
    async with listening(app, host=host, port=port) as bound:
        logger.info("serving health and metrics on port %d", bound, extra={"port": bound})
        yield bound
