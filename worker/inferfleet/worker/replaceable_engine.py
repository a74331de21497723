"""The engine of a worker, which may be replaced while answers run.

The rest of the worker sees one ``Engine``: the current one. Only an attempt needs more, because its answer
belongs to one model: it is pinned to the engine that was current when it was claimed, and keeps it to its
end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from inferfleet.schemas import Endpoint
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.ports import (
    Completion,
    Engine,
    EngineStats,
    Generation,
    ModelIdentity,
    as_adapter_engine,
)


class ReplaceableEngine:
    """An ``Engine`` that is another one after ``replace``. It stops those that it has replaced, too."""

    def __init__(self, engine: Engine) -> None:
        self.current = engine
        """The engine on which new attempts start."""
        self._running = [engine]
        """The engines that were replaced and not stopped yet, and then the current one."""
        self._pinned: dict[JobRun, Engine] = {}
        self._unpinned = asyncio.Event()

    @property
    def model(self) -> str:
        """The served name of the current model."""
        return self.current.model

    @property
    def identity(self) -> ModelIdentity | None:
        """The identity of the current model."""
        return self.current.identity

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The endpoints of the current model."""
        return self.current.endpoints

    async def adapters(self) -> tuple[str, ...]:
        """Return the names of the current model's adapters."""
        engine = as_adapter_engine(self.current)
        return () if engine is None else await engine.adapters()

    async def start(self) -> None:
        """Start the current engine."""
        await self.current.start()

    def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        """Answer on the current engine."""
        return self.current.generate(generation)

    def resumable(self, generation: Generation) -> bool:
        """Return what the current engine says."""
        return self.current.resumable(generation)

    def stats(self) -> EngineStats:
        """Return the counts of all engines that run; of their KV memory, the fullest."""
        all_stats = [engine.stats() for engine in self._running]
        return EngineStats(
            running=sum(stats.running for stats in all_stats),
            waiting=sum(stats.waiting for stats in all_stats),
            kv_cache_usage=max(stats.kv_cache_usage for stats in all_stats),
        )

    async def stop(self) -> None:
        """Stop all engines."""
        for engine in list(self._running):
            await engine.stop()

    def pin(self, run: JobRun) -> Engine:
        """Let an attempt keep the current engine until ``unpin``."""
        self._pinned[run] = self.current
        return self.current

    def unpin(self, run: JobRun) -> None:
        """Note that an attempt has ended. Does nothing if it has none."""
        if self._pinned.pop(run, None) is not None:
            self._unpinned.set()

    def of(self, run: JobRun) -> Engine:
        """Return the engine of an attempt that has one."""
        return self._pinned[run]

    def runs_on(self, engine: Engine) -> list[JobRun]:
        """Return the attempts that are pinned to an engine."""
        return [run for run, its in self._pinned.items() if its is engine]

    async def until_unused(self, engine: Engine) -> None:
        """Wait until no attempt is pinned to an engine."""
        while self.runs_on(engine):
            self._unpinned.clear()
            await self._unpinned.wait()

    def replace(self, engine: Engine) -> None:
        """Start all attempts from now on on this engine, which has been started."""
        self.current = engine
        self._running.append(engine)

    async def retire(self, engine: Engine) -> None:
        """Stop an engine on which no attempt runs."""
        await engine.stop()
        if engine is not self.current:
            self._running.remove(engine)
