"""A collector, and workers and gateways that export their spans to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from tests.forked import ForkedProcess
from tests.integration.conftest import StartWorkerProcess, WorkerProcess, reader_of
from tests.integration.tracing.collector import Collector, collecting

StartGatewayProcess = Callable[..., Awaitable[tuple[WorkerProcess, str]]]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@pytest.fixture
def start_tracing(
    start_worker_process: StartWorkerProcess, environment: dict[str, str], collector: Collector
) -> StartWorkerProcess:
    """Start workers that trace to the collector."""

    async def start(*options: str, preamble: str = "", **variables: str) -> WorkerProcess:
        return await start_worker_process(*options, preamble=preamble, tracing="true", **variables)

    environment |= collector.environment
    return start


@pytest.fixture
async def start_tracing_gateway(
    environment: dict[str, str], collector: Collector, pool: str
) -> AsyncIterator[StartGatewayProcess]:
    """Start gateways as processes that trace to the collector, and return their addresses, too."""
    async with AsyncExitStack() as stack:

        async def start(**variables: str) -> tuple[WorkerProcess, str]:
            settings = {"tracing": "true", "webhook_networks": '["127.0.0.0/8"]', **variables}
            env = {**environment, **collector.environment}
            env |= {f"INFERFLEET_{name.upper()}": value for name, value in settings.items()}
            readable, writable = os.pipe()
            with os.fdopen(writable, "wb") as log:
                arguments = ["gateway", "--http-port", "0", "--pool", pool]
                gateway = WorkerProcess(
                    ForkedProcess(arguments, env=env, stdout=log, stderr=log), await reader_of(readable)
                )
            stack.push_async_callback(gateway.close)
            serves = await gateway.logged("serving OpenAI's API on ")
            return gateway, serves["message"].split()[-1].removesuffix("/v1")

        yield start
