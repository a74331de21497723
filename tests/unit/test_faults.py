"""Faults of a soak that end while something restarts."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inferfleet.local.chaos import faults
from inferfleet.local.chaos.faults import Faults


class SlowServices:
    """Services whose restart takes until ``up`` is set."""

    def __init__(self) -> None:
        self.down = asyncio.Event()
        self.up = asyncio.Event()
        self.running = True

    async def restart(self) -> None:
        self.running = False
        self.down.set()
        await self.up.wait()
        self.running = True

    async def empty(self) -> frozenset[str]:
        await self.restart()
        return frozenset({"lost"})


@pytest.mark.parametrize("seed", range(4))
async def test_a_restart_that_has_begun_is_over_once_all_is_healed(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # Given a service that is being restarted
    monkeypatch.setattr(faults, "SERVICE_EVERY_S", (0.0, 0.0))
    services = SlowServices()
    harness = SimpleNamespace(
        restart_broker=services.restart, restart_store=services.restart, empty_store=services.empty
    )
    disturbing = Faults(
        harness=cast("Any", harness),
        places=(),
        producers=(),
        rng=random.Random(seed),
        empty_redis=True,
        shared_keys=False,
    )
    running = asyncio.create_task(disturbing.run())
    await services.down.wait()

    # When the faults end
    running.cancel()
    await asyncio.wait([running])
    healing = asyncio.create_task(disturbing.heal())
    await asyncio.sleep(0)
    assert not healing.done()
    services.up.set()
    await healing

    # Then it runs, and what was lost is known
    assert services.running
    assert disturbing.lost_results == ({"lost"} if disturbing.happened[faults.Fault.REDIS_EMPTIED] else set())
