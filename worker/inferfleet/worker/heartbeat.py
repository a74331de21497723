"""A worker's heartbeat, on the health map in Redis and on the HTTP port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version

from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.model_swap import ModelSwap
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.heartbeats import forget_heartbeat, write_heartbeat
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import note_limit
from inferfleet.wire.redis.pools import note_pool
from inferfleet.worker.ended_counts import EndedCounting
from inferfleet.worker.ended_jobs import EndedJobs
from inferfleet.worker.metrics import WorkerMetrics
from inferfleet.worker.replaceable_engine import ReplaceableEngine
from inferfleet.worker.slots import PauseReason, Slots
from inferfleet.worker.throughput import Throughput
from inferfleet.worker.work_counting import WorkCounting

logger = logging.getLogger(__name__)

HEARTBEATS_MISSED = 5
"""After this many missed heartbeats a worker is off the health map, but not before ``LEAST_LIFE_S``."""

LEAST_LIFE_S = 3.0
"""A heartbeat expires no earlier than this: a busy machine may delay a worker by several intervals."""

JOBS_WINDOW_S = 60.0
"""Over how long the rate of jobs is measured: an answer may take that long."""

TOKENS_WINDOW_S = 10.0
"""Over how long the rate of tokens is measured."""

ADAPTERS_SHOWN = 1000
"""How many adapters a heartbeat names at most."""

FORGET_TIMEOUT_S = 1.0
"""How long an exiting worker tries to remove itself from the health map."""


class HeartbeatWriter:
    """Keeps the worker's phase, and writes it with the engine's load."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        engine: ReplaceableEngine,
        slots: Slots,
        metrics: WorkerMetrics,
        ended_jobs: EndedJobs,
        work_counting: WorkCounting,
        ended_counts: EndedCounting,
        clock: RedisClock,
        unfit: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._slots = slots
        self._metrics = metrics
        self._ended_jobs = ended_jobs
        self._work_counting = work_counting
        self._ended_counts = ended_counts
        self._clock = clock
        self._unfit = unfit
        self.started_at = clock.now()
        """When the worker started, by Redis' clock once that is known."""
        self._phase = WorkerPhase.LOADING
        self._swap: ModelSwap | None = None
        self._finished = Throughput(window_s=JOBS_WINDOW_S)
        self._generated = Throughput(window_s=TOKENS_WINDOW_S)
        self._adapters: tuple[str, ...] = ()
        self._listing: asyncio.Task[tuple[str, ...]] | None = None
        self._changed = asyncio.Event()
        self._outage = Outage()
        # Read once: the version is in files, and later the process may have no file descriptor left.
        self._version = version("inferfleet")

    @property
    def phase(self) -> WorkerPhase:
        """The phase of the worker's life. While it has no model, or the wrong one, it is loading again."""
        if self._phase is WorkerPhase.READY and (
            self._slots.paused_by(PauseReason.SWAP) or self._slots.paused_by(PauseReason.IDENTITY)
        ):
            return WorkerPhase.LOADING
        return self._phase

    @property
    def serving(self) -> bool:
        """Whether a model has been loaded and the worker does not drain."""
        return self._phase is WorkerPhase.READY

    def enter(self, phase: WorkerPhase) -> None:
        """Change the phase, and write it at once."""
        self._phase = phase
        self._changed.set()

    def show_swap(self, swap: ModelSwap) -> None:
        """Show how far a swap of the model is, and write it at once."""
        self._swap = swap
        self._changed.set()

    def heartbeat(self) -> Heartbeat:
        """Return the current heartbeat."""
        stats = self._engine.stats()
        identity = self._engine.identity
        return Heartbeat(
            worker_id=self._settings.worker_id,
            pool=self._settings.pool,
            phase=self.phase,
            engine=self._settings.engine,
            model=self._engine.model,
            model_identity=identity.short if identity is not None else "",
            model_weights=identity.weights if identity is not None else "",
            adapters=self._adapters,
            version=self._version,
            running=stats.running,
            waiting=stats.waiting,
            held=self._slots.waiting,
            slots=self._slots.limit,
            kv_cache_usage=stats.kv_cache_usage,
            tokens_generated=self._metrics.attempts.tokens_generated,
            finished_per_s=self._finished.per_s(self._metrics.attempts.jobs_finished),
            tokens_per_s=self._generated.per_s(self._metrics.attempts.tokens_generated),
            mean_job=self._work_counting.means.job,
            answers=self._work_counting.means.answers,
            ended=self._ended_jobs.latest(),
            swap=self._swap,
            unfit=self._unfit(),
            started_at=self.started_at,
            seen_at=self._clock.now(),
        )

    async def write(self, pipeline: CommandPipeline) -> None:
        """Write the heartbeat at every interval, and at once when something changes, until cancelled.

        A failed write does not end the worker: the health map lacks it only for a moment.
        """
        interval_s = self._settings.heartbeat_interval_s
        ttl_s = max(LEAST_LIFE_S, interval_s * HEARTBEATS_MISSED)
        while True:
            self._changed.clear()
            try:
                await self._list_adapters()
                await write_heartbeat(pipeline, self.heartbeat(), ttl_s=ttl_s)
                await self._ended_counts.add(pipeline)
                await note_limit(pipeline, self._settings.pool, self._settings.queue_max_length)
                await note_pool(pipeline, self._settings.pool)
            except Exception:
                if self._outage.began():
                    logger.exception("cannot write the heartbeat; retrying")
            else:
                if (lasted_s := self._outage.ended()) is not None:
                    logger.warning("writing the heartbeat works again after %.1f s", lasted_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._changed.wait()

    async def _list_adapters(self) -> None:
        # Their volume may hang. That must not keep the worker off the map, nor take a thread each time.
        if self._listing is None:
            self._listing = asyncio.create_task(self._engine.adapters())
        await asyncio.wait({self._listing}, timeout=self._settings.heartbeat_interval_s)
        if self._listing.done():
            listing, self._listing = self._listing, None
            self._adapters = listing.result()[:ADAPTERS_SHOWN]

    async def forget(self, pipeline: CommandPipeline) -> None:
        """Remove the worker from the health map. If Redis is unreachable, the heartbeat expires by itself."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FORGET_TIMEOUT_S):
                await self._ended_counts.add(pipeline)
                await forget_heartbeat(pipeline, self._settings.worker_id)
