"""A fleet whose Redis has vector sets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferfleet.local.services import Services
from inferfleet.producer import Fleet, Index


@pytest.fixture
def services(services: Services, redis_8: str) -> Services:
    return replace(services, redis_url=redis_8)


@pytest.fixture
def index(fleet: Fleet, pool: str) -> Index:
    """An index of this test's own."""
    return fleet.index(pool)
