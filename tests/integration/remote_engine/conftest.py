"""A gateway with a simulated worker: a server that speaks OpenAI's API, and returns no token ids."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.conftest import RunningGateway, RunningWorker, StartGateway, StartWorker

from inferfleet.worker.engines.openai.engine import OpenaiEngine

MODEL = "simulated"


@dataclass(frozen=True)
class Server:
    gateway: RunningGateway
    worker: RunningWorker

    @property
    def url(self) -> str:
        return self.gateway.url

    async def stop(self) -> None:
        await self.gateway.stop()


Upstream = Callable[..., Awaitable[Server]]
MakeEngine = Callable[..., OpenaiEngine]


@pytest.fixture
def upstream(start_gateway: StartGateway, start_worker: StartWorker) -> Upstream:
    """Start a gateway and its worker, in a pool of their own."""

    async def start(**settings: Any) -> Server:
        pool = f"upstream-{uuid4().hex[:8]}"
        worker = await start_worker(pool=pool)
        return Server(await start_gateway(pool=pool, **settings), worker)

    return start


@pytest.fixture
def engine_on() -> MakeEngine:
    """Make an engine that asks these servers."""

    def make(*servers: Server, model: str = MODEL, max_running: int = 4, **engine_args: Any) -> Any:
        urls = [f"{server.url}/v1" for server in servers]
        return OpenaiEngine(urls=urls, model=model, max_running=max_running, engine_args=engine_args)

    return make
