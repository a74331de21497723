"""Replaces the model of a running worker. On any failure the worker keeps the old model.

Read ``_swap`` from top to bottom. The engines themselves are in ``replaceable_engine``; what makes a model
fit is in ``probe``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from inferfleet.schemas.control import SwapModel, SwapStrategy
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.model_swap import ModelSwap, SwapState
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.tasks import cancel_and_wait
from inferfleet.worker.fronts import Fronts
from inferfleet.worker.ports import Engine, EngineDeadError
from inferfleet.worker.probe import ProbeFailedError, ProbeResult, probe, require
from inferfleet.worker.replaceable_engine import ReplaceableEngine
from inferfleet.worker.slots import PauseReason, Slots
from inferfleet.worker.stop_switch import Interruption

logger = logging.getLogger(__name__)

MakeEngine = Callable[[WorkerSettings], Engine]


class ModelSwaps:
    """Carries out the swaps that the worker is ordered to do, one at a time.

    ``on_change`` is called whenever ``latest`` has changed, ``on_switch`` when a new model has been loaded
    and the other one unloaded, and ``on_engine_death`` when neither model can be loaded any more, or the swap
    ends in a way that nobody has foreseen: then it is not known what is loaded, and the worker has to end.
    """

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        engine: ReplaceableEngine,
        make: MakeEngine,
        slots: Slots,
        fronts: Fronts,
        clock: RedisClock,
        on_change: Callable[[ModelSwap], None],
        on_switch: Callable[[], None],
        on_engine_death: Callable[[EngineDeadError], None],
    ) -> None:
        self._settings = settings
        """Those with which the current engine was made."""
        self._engine = engine
        self._make = make
        self._slots = slots
        self._fronts = fronts
        self._clock = clock
        self._on_change = on_change
        self._on_switch = on_switch
        self._on_engine_death = on_engine_death
        self.latest: ModelSwap | None = None
        self._task: asyncio.Task[None] | None = None
        self._paused_at: float | None = None

    def begin(self, order: SwapModel) -> None:
        """Begin a swap, unless it was ordered before, or another one runs: the sender sees which."""
        if self.latest is not None and (self.latest.busy or self.latest.swap_id == order.swap_id):
            return
        settings = self._settings.model_copy(
            update={"model": order.model}
            | ({} if order.engine_args is None else {"engine_args": order.engine_args})
        )
        self.latest = ModelSwap(
            swap_id=order.swap_id,
            model=order.model,
            state=SwapState.LOADING,
            since=self._clock.now(),
        )
        logger.info("swapping the model", extra={"model": order.model, "strategy": order.strategy})
        self._on_change(self.latest)
        self._task = asyncio.create_task(self._swap(order, settings))
        self._task.add_done_callback(self._ended)

    async def aclose(self) -> None:
        """Give up a swap that runs. The worker stops the current engine, and those that it has replaced."""
        if self._task is not None:
            await cancel_and_wait(self._task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End the worker if a swap has failed outside of what rolls it back: it would never be over."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a swap failed unexpectedly", exc_info=error)
            self._on_engine_death(EngineDeadError(f"the swap cannot be brought to its end: {_said(error)}"))

    async def _swap(self, order: SwapModel, settings: WorkerSettings) -> None:
        old = self._engine.current
        drain_timeout_s = (
            self._settings.drain_timeout_s if order.drain_timeout_s is None else order.drain_timeout_s
        )
        # Beside the load, because a full engine answers the probe only when an answer has ended.
        comparing = asyncio.create_task(_probe_current(old))
        new: Engine | None = None
        try:
            new = self._make(settings)
            if new.model != old.model and not order.allow_rename:
                raise ConfigurationError(
                    f"it would be served as {new.model!r} instead of {old.model!r}, and jobs that name the "
                    "old one would fail: keep the served name, or allow another one (--allow-rename)"
                )
            if order.strategy is SwapStrategy.RESTART:
                self._tell(SwapState.DRAINING)
                await self._pause()
                await self._drain(old, drain_timeout_s)
                await comparing
                await old.stop()
                self._tell(SwapState.LOADING)
            await new.start()
            self._tell(SwapState.PROBING)
            found = await probe(new)
            require(
                found, current=await comparing, hash_=order.probe_hash, max_perplexity=order.max_perplexity
            )
        except asyncio.CancelledError:
            if new is not None:
                await new.stop()
            raise
        except Exception as error:
            await self._roll_back(old, new, error)
            return
        finally:
            await cancel_and_wait(comparing)
        self._engine.replace(new)
        self._settings = settings
        self._resume()
        self._tell(SwapState.SWITCHED, probe_hash=found.hash)
        await self._drain(old, drain_timeout_s)
        await self._engine.retire(old)
        self._on_switch()
        self._tell(SwapState.SWITCHED, busy=False)

    async def _roll_back(self, old: Engine, new: Engine | None, error: Exception) -> None:
        """Keep the old model, or load it again if it was unloaded."""
        if not isinstance(error, (ConfigurationError, EngineDeadError, ProbeFailedError)):
            logger.error("a swap failed unexpectedly", exc_info=error)
        if new is not None:
            await new.stop()
        if self._paused_at is not None:
            # It may be loaded still, and there is no memory for both.
            await old.stop()
            again = self._make(self._settings)
            try:
                await again.start()
            except asyncio.CancelledError:
                await again.stop()
                raise
            except Exception as failed:
                if not isinstance(failed, (ConfigurationError, EngineDeadError)):
                    logger.error("the old model failed unexpectedly", exc_info=failed)
                why = f"neither model can be loaded: {_said(error)}; {_said(failed)}"
                self._on_engine_death(EngineDeadError(why))
                await again.stop()
                return
            self._engine.replace(again)
            await self._engine.retire(old)
            self._resume()
        self._tell(SwapState.ROLLED_BACK, reason=_said(error)[:2000], busy=False)

    async def _drain(self, engine: Engine, timeout_s: float) -> None:
        """Let the answers on an engine end in time, hand over the others, and wait until none is left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._engine.until_unused(engine)
        for run in self._engine.runs_on(engine):
            run.interrupt(Interruption.HAND_OVER)
        await self._engine.until_unused(engine)

    async def _pause(self) -> None:
        """Let no job start. Jobs that have a slot by then have begun when this returns."""
        self._paused_at = time.monotonic()
        self._slots.pause(PauseReason.SWAP, paused=True)
        self._fronts.forget()
        await asyncio.sleep(0)

    def _resume(self) -> None:
        if self._paused_at is None:
            return
        self._slots.pause(PauseReason.SWAP, paused=False)
        self._fronts.forget()
        without_s, self._paused_at = time.monotonic() - self._paused_at, None
        self._update(without_service_s=without_s)

    def _tell(self, state: SwapState, **changes: Any) -> None:
        latest = self._update(state=state, since=self._clock.now(), **changes)
        identity = self._engine.identity
        fields = {
            "model": latest.model,
            "state": str(state),
            "model_identity": "" if identity is None else identity.short,
        }
        if state is SwapState.ROLLED_BACK:
            logger.error("the swap was rolled back: %s", latest.reason, extra=fields)
        else:
            logger.info(
                "swap: %s%s", state, "" if latest.busy else ", and the old model is unloaded", extra=fields
            )
        self._on_change(latest)

    def _update(self, **changes: Any) -> ModelSwap:
        assert self.latest is not None  # noqa: S101 - a swap runs
        self.latest = self.latest.model_copy(update=changes)
        return self.latest


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _probe_current(engine: Engine) -> ProbeResult | None:
    """Probe the current model, for comparison; ``None`` if it fails the probe itself."""
    try:
        return await probe(engine)
    except ProbeFailedError as error:
        logger.warning("the current model fails the probe, so the new one is not compared with it: %s", error)
        return None
