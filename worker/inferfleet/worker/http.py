"""The worker's HTTP port: liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.wire.health_port import Encode, serving_health
from inferfleet.worker.gpus import Gpus
from inferfleet.worker.metrics import WorkerMetrics


def serve_http(
    *,
    host: str,
    port: int,
    heartbeat: Callable[[], Heartbeat],
    ready: Callable[[], bool],
    metrics: WorkerMetrics,
    lines_dropped: Callable[[], int] = lambda: 0,
) -> AbstractAsyncContextManager[int]:
    """Serve while the block runs. Yield the port, which is a free one if ``port`` is 0.

    A worker is ready from the moment when the model is warm and it takes jobs until it drains. An unreachable
    broker does not make a worker unready, because running jobs continue. A Redis that refuses what the worker
    needs does, because then no job makes progress. Answers about its health show the worker's heartbeat.

    Raises:
        ConfigurationError: The port is taken.

    """
    gpus = Gpus()

    async def exposition(encode: Encode) -> bytes:
        metrics.observe(
            heartbeat(),
            ready=ready(),
            lines_dropped=lines_dropped(),
            gpus=await gpus.ask(),
        )
        return metrics.exposition(encode)

    return serving_health(
        host=host,
        port=port,
        state=lambda: heartbeat().model_dump_json(),
        ready=ready,
        exposition=exposition,
    )
