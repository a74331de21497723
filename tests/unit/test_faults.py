"""Faults of a soak that end while something restarts, that change nothing, or that never come."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inferfleet.local.chaos.cluster_faults import ClusterFault
from inferfleet.local.chaos.faults import Faults
from inferfleet.local.chaos.service_faults import NothingHitError, ServiceFault, SingleServiceFaults
from inferfleet.local.chaos.soak import SoakOptions, SoakReport, Topology
from inferfleet.local.chaos.waste import Waste


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
    monkeypatch.setattr(SingleServiceFaults, "every_s", (0.0, 0.0))
    services = SlowServices()
    harness = SimpleNamespace(
        restart_broker=services.restart, restart_store=services.restart, empty_store=services.empty
    )
    service_faults = SingleServiceFaults(cast("Any", harness), empty_redis=True)
    disturbing = Faults(
        places=(),
        producers=(),
        services=service_faults,
        rng=random.Random(seed),
        shared_keys=False,
        limits=False,
        say=print,
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
    lost: set[str] = {"lost"} if disturbing.happened[ServiceFault.REDIS_EMPTIED] else set()
    assert await service_faults.lost_results({"lost", "kept"}) == lost


class NothingToHit(SingleServiceFaults):
    """Services that a fault does not change."""

    every_s = (0.0, 0.0)

    def __init__(self) -> None:
        super().__init__(cast("Any", None), empty_redis=False)
        self.tried = asyncio.Event()

    async def inject(self, fault: StrEnum) -> None:
        self.tried.set()
        raise NothingHitError("nothing is there")


async def test_a_fault_that_changed_nothing_has_not_happened_and_is_reported() -> None:
    services = NothingToHit()
    disturbing = Faults(
        places=(),
        producers=(),
        services=services,
        rng=random.Random(1),
        shared_keys=False,
        limits=False,
        say=print,
    )
    running = asyncio.create_task(disturbing.run())
    await services.tried.wait()
    running.cancel()
    await asyncio.wait([running])
    await disturbing.heal()
    assert not disturbing.happened
    assert disturbing.missed[0].endswith(": nothing is there")


def test_a_soak_that_lacks_a_planned_fault_is_not_good() -> None:
    report = SoakReport(
        options=SoakOptions(
            seed=1,
            minutes=1,
            jobs=1,
            topology=Topology.CLUSTER,
            cluster_faults=frozenset({ClusterFault.QUEUE_PURGE, ClusterFault.BROKER_WIPE}),
        ),
        accepted=1,
        ends={},
        faults={ClusterFault.BROKER_WIPE.value: 1},
        violations={},
        findings=(),
        missed=(),
        excused=0,
        waste=Waste(0, 0),
        seconds=1.0,
    )
    assert report.untested == ["queue_purge"]
    assert not report.ok
    assert replace(report, faults={"queue_purge": 1, "broker_wipe": 2}).ok
