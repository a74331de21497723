"""The fixture of a client for tests that anyio's plugin runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from inferfleet.producer import Fleet
    from inferfleet.testing.workers import SyncWorkers


@pytest.fixture
async def inferfleet_anyio_fleet(sync_workers: SyncWorkers) -> AsyncGenerator[Fleet]:
    """A connected client."""
    from inferfleet.producer import Fleet

    async with Fleet.connect() as fleet:
        yield fleet
