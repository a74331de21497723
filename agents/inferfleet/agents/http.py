"""The runner's HTTP port: liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext

import orjson

from inferfleet.agents.metrics import RunnerMetrics
from inferfleet.agents.settings import RunnerSettings
from inferfleet.wire.health_port import Encode, serving_health


def serve_http(
    settings: RunnerSettings,
    *,
    agents: Callable[[], Collection[str]],
    ready: Callable[[], bool],
    metrics: RunnerMetrics,
) -> AbstractAsyncContextManager[int | None]:
    """Serve while the block runs, if the settings name a port. Yield it: a free one if that is 0.

    A runner is ready from the moment when it takes runs until it drains. An unreachable broker does not make
    it unready, because the runs that it has continue; a Redis that refuses what it needs does.

    Raises:
        ConfigurationError: The port is taken.

    """
    if settings.http_port is None:
        return nullcontext()

    def state() -> str:
        runner = {
            "client_id": settings.client_id,
            "queue": settings.agent_queue,
            "agents": sorted(agents()),
            "ready": ready(),
        }
        return orjson.dumps(runner).decode()

    async def exposition(encode: Encode) -> bytes:
        return encode(metrics.registry)

    return serving_health(
        host=settings.http_host, port=settings.http_port, state=state, ready=ready, exposition=exposition
    )
