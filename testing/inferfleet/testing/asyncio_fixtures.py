"""The fixture of a client for tests that pytest-asyncio runs, in its strict or its automatic mode."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest_asyncio

if TYPE_CHECKING:
    from inferfleet.producer import Fleet
    from inferfleet.testing.workers import SyncWorkers


@pytest_asyncio.fixture
async def inferfleet_asyncio_fleet(sync_workers: SyncWorkers) -> AsyncGenerator[Fleet]:
    """A connected client."""
    from inferfleet.producer import Fleet

    async with Fleet.connect() as fleet:
        yield fleet
