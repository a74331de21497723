"""Which batches a gateway runs, while there are more than it has places for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.gateway_batches.conftest import KEY_ID, StuckStorage, order

from inferfleet.gateway.batches.run import BatchRun
from inferfleet.gateway.batches.runner import BatchRunner
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.schemas.batch import (
    BatchOrder,
    BatchRecord,
    BatchState,
)
from inferfleet.wire.tasks import cancel_and_wait


class OpenBatches:
    """Open batches, of which those in ``elsewhere`` run in another gateway."""

    def __init__(self) -> None:
        self.orders: dict[str, BatchOrder] = {}
        self.cancelled: set[str] = set()
        self.elsewhere: set[str] = set()
        self.handed_over: list[str] = []
        self.gone: set[str] = set()

    async def close(self, batch_id: str) -> None:
        del self.orders[batch_id]

    def add(self, tenant: str, **changes: Any) -> str:
        one = order(tenant=tenant, **changes)
        self.orders[one.id] = one
        return one.id

    def now_ms(self) -> int:
        return 1000

    async def open(self) -> dict[str, int]:
        ends = {one.id: 0 if one.id in self.cancelled else one.deadline_ms for one in self.orders.values()}
        return dict(sorted(ends.items(), key=lambda item: item[1]))

    async def order(self, batch_id: str) -> BatchOrder | None:
        return None if batch_id in self.gone else self.orders[batch_id]

    async def claim(self, batch_id: str, **_: Any) -> BatchRecord | None:
        await asyncio.sleep(0)
        return None if batch_id in self.elsewhere else BatchRecord(order=self.orders[batch_id])

    async def change(self, batch_id: str, **_: Any) -> BatchState:
        self.handed_over.append(batch_id)
        return BatchState.IN_PROGRESS


@pytest.fixture
async def batches() -> OpenBatches:
    return OpenBatches()


class Places:
    """A runner of batches that never end."""

    def __init__(
        self, batches: OpenBatches, monkeypatch: pytest.MonkeyPatch, at_once: int, keys: Any
    ) -> None:
        async def endless(_: BatchRun) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(BatchRun, "run", endless)
        settings = SimpleNamespace(batches_at_once=at_once)
        gateway = SimpleNamespace(
            batches=batches,
            settings=settings,
            new_batch=asyncio.Event(),
            keys=keys,
            files=None,
            metrics=GatewayMetrics(CollectorRegistry()),
        )
        self._runner = BatchRunner(cast("Gateway", gateway))
        self._batches = batches

    async def look(self) -> list[str]:
        """Look for batches, and return the tenants of those that run then."""
        await self._runner._look(cast("Any", SimpleNamespace(storage=StuckStorage())))
        running = self._runner._running
        if handing_over := [task for task in running.values() if task.cancelling()]:
            await asyncio.wait(handing_over)
        return sorted(self._batches.orders[batch_id].tenant for batch_id in running)

    async def end(self) -> None:
        await cancel_and_wait(*self._runner._running.values())


@pytest.fixture
async def places(
    batches: OpenBatches, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Places]]:
    made: list[Places] = []

    def make(at_once: int, *, keys: Any = None) -> Places:
        made.append(Places(batches, monkeypatch, at_once, keys))
        return made[-1]

    yield make
    for each in made:
        await each.end()


async def test_a_batch_of_each_tenant_comes_first(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    for tenant in "aaaabbbb":
        batches.add(tenant)

    assert await places(4).look() == ["a", "a", "b", "b"]
    assert batches.handed_over == []


async def test_places_are_shared_by_tenants(batches: OpenBatches, places: Callable[..., Places]) -> None:
    runner = places(4)
    for _ in range(8):
        batches.add("a", deadline_ms=5000)
    assert await runner.look() == ["a"] * 4

    # The tenant with the later deadlines gets its half of the places all the same.
    for _ in range(8):
        batches.add("b", deadline_ms=9000)
    await runner.look()
    assert await runner.look() == ["a", "a", "b", "b"]
    batches.add("c")
    await runner.look()
    assert set(await runner.look()) == {"a", "b", "c"}


async def test_no_batch_is_handed_over_for_one_that_runs_elsewhere(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    runner = places(4)
    for _ in range(8):
        batches.add("a")
    await runner.look()
    batches.elsewhere.add(batches.add("b"))

    assert await runner.look() == ["a"] * 4


async def test_a_batch_that_has_to_end_needs_no_place(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    runner = places(1)
    batches.add("a")
    assert await runner.look() == ["a"]
    batches.add("a", deadline_ms=999)
    assert await runner.look() == ["a", "a"]
    cancelled = batches.add("a")
    assert await runner.look() == ["a", "a"]
    batches.cancelled.add(cancelled)
    assert await runner.look() == ["a"] * 3


async def test_a_gateway_without_keys_leaves_the_batches_of_keys_to_others(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    batches.add("a", key_id=KEY_ID)

    assert await places(1).look() == []
    assert await places(1, keys=SimpleNamespace()).look() == ["a"]


async def test_what_a_lost_batch_has_left_holds_up_no_other(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    batches.gone.add(batches.add("a"))
    batches.add("b")

    assert await places(1).look() == ["b"]
