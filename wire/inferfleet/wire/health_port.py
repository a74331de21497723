"""Health and metrics of a process over HTTP: what probes and Prometheus ask for.

Needs aiohttp and prometheus_client, which a producer's installation does not have.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from inferfleet.wire.http_port import listening

logger = logging.getLogger(__name__)

LIVE_PATH = "/health/live"
READY_PATH = "/health/ready"
METRICS_PATH = "/metrics"

Encode = Callable[[CollectorRegistry], bytes]


@asynccontextmanager
async def serving_health(
    *,
    host: str,
    port: int,
    state: Callable[[], str],
    ready: Callable[[], bool],
    exposition: Callable[[Encode], Awaitable[bytes]],
) -> AsyncGenerator[int]:
    """Serve while the block runs. Yield the port, which is a free one if ``port`` is 0.

    ``/health/live`` answers 200 as long as the event loop runs, ``/health/ready`` 200 while the process is
    ``ready``, otherwise 503. Both show its ``state``, which is JSON. ``exposition`` writes the metrics in the
    format of the encoder that it is given.

    Raises:
        ConfigurationError: The port is taken.

    """

    def answer(status: int) -> web.Response:
        return web.Response(status=status, text=state() + "\n", content_type="application/json")

    async def live(_: web.Request) -> web.Response:
        return answer(200)

    async def is_ready(_: web.Request) -> web.Response:
        return answer(200 if ready() else 503)

    async def scrape(request: web.Request) -> web.Response:
        # Only OpenMetrics has exemplars. Prometheus asks for it.
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=await exposition(encode), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get(LIVE_PATH, live)
    app.router.add_get(READY_PATH, is_ready)
    app.router.add_get(METRICS_PATH, scrape)
    async with listening(app, host=host, port=port) as bound:
        logger.info("serving health and metrics on port %d", bound, extra={"port": bound})
        yield bound
