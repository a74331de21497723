"""Exports the spans of a process, if its settings ask for that.

OpenTelemetry is imported only then. Its own variables configure it: ``OTEL_SERVICE_NAME``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_…`` and ``OTEL_BSP_…``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from inferfleet.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from inferfleet.wire.span_export import SpanExport

FLUSH_S: Final = 5.0
"""How long an exiting process waits for the collector to take its last spans."""


@asynccontextmanager
async def exporting_spans(service: str, *, instance: str) -> AsyncGenerator[SpanExport]:
    """Export spans while the block runs; then flush them, for ``FLUSH_S`` at most.

    Raises:
        ConfigurationError: OpenTelemetry is not installed, or one of its variables is invalid.

    """
    try:
        from inferfleet.wire.span_export import make_export
    except ImportError as error:
        raise ConfigurationError(
            f"INFERFLEET_TRACING needs the extra otel, because {error}: pip install 'inferfleet[otel]'"
        ) from error
    try:
        export = make_export(service, instance=instance)
    except ValueError as error:
        raise ConfigurationError(f"invalid setting of OpenTelemetry: {error}") from error
    try:
        yield export
    finally:
        await _ended(export.provider.shutdown)


async def _ended(shutdown: Callable[[], None]) -> None:
    """Wait for a shutdown, but not for ever: a collector may accept a request and never answer."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def run() -> None:
        try:
            shutdown()
        finally:
            # Nobody waits any more if the loop is closed.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

    # A daemon, unlike the threads of an executor, does not keep the process from exiting.
    threading.Thread(target=run, name="flush spans", daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(FLUSH_S):
            await ended.wait()
