"""The engine is given as many jobs as it can run."""

from __future__ import annotations

import pytest

from inferfleet.worker.intake import wanted
from inferfleet.worker.ports import EngineStats


@pytest.mark.parametrize(
    ("limit", "taken", "running", "waiting", "usage", "expected", "why"),
    [
        (64, 0, 0, 0, 0.0, 64, "an idle engine has all its slots"),
        (64, 64, 64, 0, 0.5, 64, "a full one keeps them"),
        (64, 64, 10, 54, 1.0, 10, "memory for ten"),
        (10, 10, 10, 0, 1.0, 10, "and it stays there while they need it"),
        (10, 10, 10, 0, 0.5, 15, "what has memory left gets more"),
        (50, 50, 50, 0, 0.5, 64, "up to all slots"),
        (1, 1, 1, 0, 0.5, 2, "also from a single one"),
        (64, 64, 64, 192, 0.2, 16, "jobs with four choices each are four requests"),
        (16, 5, 0, 20, 1.0, 1, "there is always one"),
    ],
)
def test_the_number_of_slots_follows_what_the_engine_can_run(
    limit: int, taken: int, running: int, waiting: int, usage: float, expected: int, why: str
) -> None:
    stats = EngineStats(running=running, waiting=waiting, kv_cache_usage=usage)
    assert wanted(stats, limit=limit, taken=taken, max_running=64) == expected, why
