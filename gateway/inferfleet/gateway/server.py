"""The gateway's process: it starts, serves and stops."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import uvicorn
from prometheus_client import CollectorRegistry

from inferfleet.gateway.api_keys import KeyRing
from inferfleet.gateway.app import make_app
from inferfleet.gateway.batches.files import Files
from inferfleet.gateway.batches.runner import BatchRunner
from inferfleet.gateway.connections import LimitedProtocol
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.metrics_port import serving_metrics
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.gateway.tracing import tracing
from inferfleet.gateway.ui.fleet_view import FleetView
from inferfleet.gateway.webhooks.webhooks import Webhooks
from inferfleet.producer import Fleet
from inferfleet.producer.background import background
from inferfleet.producer.openai.api import OpenAIApi
from inferfleet.producer.openai.models import Models
from inferfleet.producer.rollout_control import RolloutController
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.wire.address import host_and_port
from inferfleet.wire.redis.batches import BatchRecords
from inferfleet.wire.redis.files import FileRecords
from inferfleet.wire.redis.rollouts import read_rules
from inferfleet.wire.redis.shared_limits import SharedLimits

logger = logging.getLogger(__name__)

FIRST_EVENT_S: Final = 10.0
"""How long a stream waits for its first event, or an error in its place, before it begins all the same."""

ACCEPT_S: Final = 10.0
"""How long a job may take to be accepted: RabbitMQ, if it hangs, would take longer to be given up."""

LAST_WORDS_S: Final = 5.0
"""How long requests have to end after the drain."""

BACKLOG: Final = 1024
KEEP_ALIVE_S: Final = 75


async def run_gateway(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        ConfigurationError: The port is taken.
        InferfleetError: What ``Fleet.connect`` raises.

    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with tracing(settings), serving(settings) as port:
        logger.info("serving OpenAI's API on http://%s/v1", host_and_port(settings.http_host, port))
        await stopping.wait()
        logger.info("draining")


@asynccontextmanager
async def serving(settings: GatewaySettings) -> AsyncGenerator[int]:
    """Serve while the block runs, then drain. Yield the port, which is a free one if the setting is 0."""
    keys, metrics = settings.api_keys_file, GatewayMetrics(CollectorRegistry())
    with _listening(settings.http_host, settings.http_port) as listener:
        async with (
            Webhooks.running(settings, metrics) as webhooks,
            Fleet.connect(settings, on_ends=webhooks.delivery.heard) as fleet,
            Files.opened(FileRecords(fleet.pipeline), settings) as files,
            serving_metrics(settings, metrics),
        ):
            metrics.watch(fleet.outages, fleet.searches)
            api = OpenAIApi(
                fleet,
                models=Models(
                    fleet.workers,
                    rules=partial(read_rules, fleet.pipeline),
                    pools=settings.model_pools,
                    pool=settings.pool,
                ),
                needs_workers=settings.refuse_without_workers,
                start_s=FIRST_EVENT_S,
                accept_s=ACCEPT_S,
            )
            gateway = Gateway(
                settings=settings,
                trusted_fleet=fleet,
                trusted_api=api,
                webhooks=webhooks,
                metrics=metrics,
                batches=BatchRecords(fleet.pipeline),
                files=files,
                limits=SharedLimits(fleet.pipeline, ttl_s=settings.queued_ttl_s),
                keys=None if keys is None else KeyRing(keys, now=fleet.pipeline.clock.now),
                fleet_view=(view := FleetView(fleet) if settings.ui else None),
            )
            server = _Server(_config(gateway))
            # With a task group a bug in the server ends the process.
            async with (
                background(
                    BatchRunner(gateway).run(),
                    RolloutController(
                        fleet,
                        settings,
                        on_abort=lambda _: metrics.rollouts_aborted.inc(),
                        tell=webhooks.tell_rollout,
                    ).run(),
                    *([view.record()] if view else []),
                ),
                asyncio.TaskGroup() as tasks,
            ):
                tasks.create_task(server.serve(sockets=[listener]))
                await server.listens.wait()
                try:
                    yield listener.getsockname()[1]
                finally:
                    gateway.shutdown.drain(timeout_s=settings.drain_timeout_s)
                    webhooks.delivery.stop()
                    server.should_exit = True
            await api.aclose()


class _Server(uvicorn.Server):
    """Says when it listens, and leaves signals to the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


def _config(gateway: Gateway) -> uvicorn.Config:
    settings = gateway.settings
    protocol: Any = partial(LimitedProtocol, head_timeout_s=settings.read_timeout_s)
    return uvicorn.Config(
        make_app(gateway),
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_timeout_s + LAST_WORDS_S),
    )


@contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host_and_port(host, port)} ({error.strerror}); choose another --http-port, "
            "or 0 for any free one"
        ) from error
    with listener:
        yield listener
