"""Samples of the whole fleet in the last hour. The gateway that holds a lease takes them."""

from __future__ import annotations

from typing import Any, Final

from inferfleet.schemas.fleet_history import FleetSample
from inferfleet.schemas.names import FLEET_HISTORY_KEY, FLEET_RECORDER_KEY
from inferfleet.wire.redis import process_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline

SAMPLE_S: Final = 15.0
"""How often a sample is taken."""

KEPT: Final = 240
"""How many samples are kept, which is an hour."""

LEASE_S: Final = 3 * SAMPLE_S
"""After how long without a sample another gateway takes over."""

TTL_S: Final = 2 * 3600
"""How long the samples stay after the last one was taken."""


class FleetHistory:
    """Reads and records samples."""

    def __init__(self, pipeline: CommandPipeline, *, recorder: str) -> None:
        self._pipeline = pipeline
        self._recorder = recorder

    async def is_recorder(self) -> bool:
        """Take or renew the lease. Return whether this process holds it, and so has to take the samples."""
        return await self._record("")

    async def record(self, sample: FleetSample) -> bool:
        """Record a sample, unless another process has the lease by now. Return whether it was recorded."""
        return await self._record(sample.model_dump_json())

    async def read(self) -> list[FleetSample]:
        """Read the samples, the oldest first. Leave out those of another version that cannot be read."""
        found: Any = await self._pipeline.execute("LRANGE", FLEET_HISTORY_KEY, 0, -1)
        return [sample for each in found if (sample := FleetSample.read(each)) is not None]

    async def _record(self, sample: str) -> bool:
        command = process_scripts.record(
            FLEET_RECORDER_KEY,
            FLEET_HISTORY_KEY,
            recorder=self._recorder,
            lease_ms=int(LEASE_S * 1000),
            sample=sample,
            most=KEPT,
            ttl_s=TTL_S,
        )
        return bool(await self._pipeline.execute(*command))
