"""A swap that fails after its worker has begun to unload its model: there is memory for one model only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from uuid import uuid4

import pytest
from tests.patience import PATIENCE_S

from inferfleet.schemas import Endpoint
from inferfleet.schemas.control import SwapModel, SwapStrategy
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.model_swap import SwapState
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.fronts import Fronts
from inferfleet.worker.model_swap import ModelSwaps
from inferfleet.worker.ports import Completion, EngineDeadError, EngineStats, Generation, ModelIdentity
from inferfleet.worker.replaceable_engine import ReplaceableEngine
from inferfleet.worker.slots import Slots


class Loaded:
    """An engine that fails its probe in an unexpected way, and knows how many are loaded at once."""

    now = 0
    most = 0
    model = "m"
    identity = ModelIdentity(engine="test", name="m")
    endpoints = frozenset({Endpoint.COMPLETIONS})

    def __init__(self) -> None:
        self.loaded = False

    async def start(self) -> None:
        self.loaded = True
        Loaded.now += 1
        Loaded.most = max(Loaded.most, Loaded.now)

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        await asyncio.sleep(0)
        yield TokenChunk(token_ids=(1,), text="a")
        raise KeyError("choices")

    def resumable(self, generation: Generation) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats()

    async def stop(self) -> None:
        if self.loaded:
            self.loaded = False
            Loaded.now -= 1


class Failing(SimulatedEngine):
    """Fails in an unexpected way when it is started or stopped."""

    def __init__(self, *fails: str) -> None:
        super().__init__(model="m", max_running=1, engine_args={"speed": 1000})
        self.fails = fails

    async def start(self) -> None:
        await super().start()
        if "start" in self.fails:
            raise RuntimeError("cannot start")

    async def stop(self) -> None:
        await super().stop()
        if "stop" in self.fails:
            raise RuntimeError("cannot stop")


@pytest.mark.parametrize(
    ("strategy", "old", "new", "why"),
    [
        (SwapStrategy.RESTART, (), ("start",), "neither model can be loaded: cannot start; cannot start"),
        (SwapStrategy.RESTART, (), ("start", "stop"), "brought to its end: cannot stop"),
        (SwapStrategy.RESTART, ("stop",), (), "brought to its end: cannot stop"),
        (SwapStrategy.SIDE_BY_SIDE, (), ("start", "stop"), "brought to its end: cannot stop"),
        (SwapStrategy.SIDE_BY_SIDE, ("stop",), (), "brought to its end: cannot stop"),
    ],
)
async def test_a_swap_that_cannot_be_brought_to_its_end_ends_the_worker(
    strategy: SwapStrategy, old: tuple[str, ...], new: tuple[str, ...], why: str
) -> None:
    """Else it would live on, without a model, and refuse the next swap as this one still runs."""
    first = Failing(*old)
    await first.start()
    engine, clock = ReplaceableEngine(first), RedisClock()
    died: asyncio.Future[EngineDeadError] = asyncio.get_running_loop().create_future()
    swaps = ModelSwaps(
        settings=WorkerSettings(engine="test", model="m"),
        engine=engine,
        make=lambda settings: Failing(*new),
        slots=Slots(1),
        fronts=Fronts(clock, strict=True),
        clock=clock,
        on_change=lambda swap: None,
        on_switch=lambda: None,
        on_engine_death=died.set_result,
    )
    swaps.begin(SwapModel(swap_id=uuid4().hex, worker_id="w", model="m", strategy=strategy))
    async with asyncio.timeout(PATIENCE_S):
        assert why in str(await died)
    await swaps.aclose()


async def test_the_old_model_is_unloaded_before_it_is_loaded_again() -> None:
    first = Loaded()
    await first.start()
    engine, clock = ReplaceableEngine(first), RedisClock()
    swaps = ModelSwaps(
        settings=WorkerSettings(engine="test", model="m"),
        engine=engine,
        make=lambda settings: Loaded(),
        slots=Slots(1),
        fronts=Fronts(clock, strict=True),
        clock=clock,
        on_change=lambda swap: None,
        on_switch=lambda: None,
        on_engine_death=lambda error: None,
    )
    swaps.begin(SwapModel(swap_id=uuid4().hex, worker_id="w", model="m", strategy=SwapStrategy.RESTART))
    async with asyncio.timeout(5):
        while swaps.latest is None or swaps.latest.busy:
            await asyncio.sleep(0.01)

    assert swaps.latest.state is SwapState.ROLLED_BACK
    assert isinstance(engine.current, Loaded)
    assert engine.current.loaded
    assert Loaded.most == 1
    await engine.stop()
