"""A worker's life: start up, serve, shut down. Read ``run`` from top to bottom."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from inferfleet.schemas.control import CancelJob, DrainWorker, SwapModel, UrgentJob, control
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import InferfleetError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.model_swap import ModelSwap
from inferfleet.schemas.settings import QueueType, WorkerSettings
from inferfleet.wire.outage import Outage
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.access import WORKER
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.connection import command_pipeline, open_store
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.tasks import cancel_and_wait
from inferfleet.wire.tracing import FLUSH_S, exporting_spans
from inferfleet.worker.assembly import assemble
from inferfleet.worker.broker import Delivery, Subscription, subscribe
from inferfleet.worker.deletion_cost import deletion_cost, keep_deletion_cost
from inferfleet.worker.ended_counts import EndedCounting
from inferfleet.worker.ended_jobs import EndedJobs
from inferfleet.worker.engine_factory import make_engine
from inferfleet.worker.fronts import Fronts
from inferfleet.worker.heartbeat import HeartbeatWriter
from inferfleet.worker.http import serve_http
from inferfleet.worker.intake import adapt_intake, prefetch
from inferfleet.worker.metrics import WorkerMetrics
from inferfleet.worker.model_swap import MakeEngine, ModelSwaps
from inferfleet.worker.pool_pause import PoolPause
from inferfleet.worker.ports import Engine, EngineDeadError
from inferfleet.worker.preemption import Preemption
from inferfleet.worker.processor import Processor
from inferfleet.worker.replaceable_engine import ReplaceableEngine
from inferfleet.worker.slots import Slots
from inferfleet.worker.start_times import StartPart, StartTimes, TimesItsStart
from inferfleet.worker.stop_switch import Interruption
from inferfleet.worker.urgent import UrgentJobs
from inferfleet.worker.work_counting import WorkCounting

if TYPE_CHECKING:
    from inferfleet.wire.span_export import SpanExport

T = TypeVar("T")

logger = logging.getLogger(__name__)

SETTLE_GRACE_S = 10.0
"""How long a drain waits for the last writes after it has stopped the last job."""


class Worker:
    """One process, one event loop, one engine at a time.

    ``make`` makes the engine of another model, when the worker is ordered to swap it. ``on_warm`` is called
    when the first model is loaded, ``on_switch`` when another one has taken its place. ``start_times`` has
    the parts of the start until now.
    """

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        engine: Engine,
        make: MakeEngine = make_engine,
        on_warm: Callable[[], None] = lambda: None,
        on_switch: Callable[[], None] = lambda: None,
        lines_dropped: Callable[[], int] = lambda: 0,
        start_times: StartTimes | None = None,
    ) -> None:
        self._settings = settings
        self._start_times = start_times or StartTimes()
        self._engine = ReplaceableEngine(engine)
        self._on_warm = on_warm
        self._lines_dropped = lines_dropped
        self._metrics = WorkerMetrics(pool=settings.pool)
        self._slots = Slots(
            settings.max_running,
            preemption=Preemption(
                from_priority=settings.preempt_from,
                min_run_s=settings.preempt_min_run_s,
                limit=settings.preempt_limit,
            ),
        )
        self._metrics.slots = lambda: self._slots.limit
        self._pipeline: CommandPipeline | None = None
        self._clock = RedisClock()
        self._ended_jobs = EndedJobs(pool=settings.pool, worker_id=settings.worker_id, clock=self._clock)
        self._work_counting = WorkCounting()
        self._ended_counts = EndedCounting(pool=settings.pool, worker_id=settings.worker_id)
        self._fronts = Fronts(self._clock, strict=settings.queue_type is QueueType.CLASSIC)
        self._pool_pause = PoolPause(
            settings=settings, engine=self._engine, slots=self._slots, fronts=self._fronts
        )
        self._heartbeats = HeartbeatWriter(
            settings=settings,
            engine=self._engine,
            slots=self._slots,
            metrics=self._metrics,
            ended_jobs=self._ended_jobs,
            work_counting=self._work_counting,
            ended_counts=self._ended_counts,
            clock=self._clock,
            unfit=lambda: self._pool_pause.unfit,
        )
        self._swaps = ModelSwaps(
            settings=settings,
            engine=self._engine,
            make=make,
            slots=self._slots,
            fronts=self._fronts,
            clock=self._clock,
            on_change=self._show_swap,
            on_switch=on_switch,
            on_engine_death=self._on_engine_death,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._was_signalled = False
        self._failure: InferfleetError | EngineDeadError | None = None
        self._broker_outage = Outage()

    @property
    def phase(self) -> WorkerPhase:
        """The phase of the worker's life."""
        return self._heartbeats.phase

    async def run(self) -> None:
        """Work until told to stop.

        Raises:
            ServiceUnreachableError: RabbitMQ or Redis did not answer at the start.
            ConfigurationError: A setting does not fit the engine, the pool's queue or the HTTP port, or Redis
                may evict keys.
            EngineDeadError: The engine died. All its jobs are back in the queue.

        """
        settings = self._settings
        confirm_channel = ConfirmChannel(
            settings.amqp_url,
            connect_timeout_s=settings.connect_timeout_s,
            confirm_timeout_s=settings.publish_timeout_s,
            name=f"{settings.worker_id} (publish)",
            announce_from=settings.preempt_from,
        )
        async with (
            self._signals(),
            open_store(
                settings.redis_url,
                access=replace(WORKER, waits=settings.redis_wait_replicas > 0),
                clock=self._clock,
                patience_s=settings.connect_timeout_s,
                allow_eviction=settings.allow_eviction,
            ) as client,
            aclosing(confirm_channel),
            self._http(),
            self._tracing() as spans_to,
            AsyncExitStack() as broker,
            asyncio.TaskGroup() as background,
        ):
            self._heartbeats.started_at = self._clock.now()
            self._pipeline = pipeline = command_pipeline(client, patience_s=None, clock=self._clock)
            self._metrics.watch("redis", pipeline.outage, circuit_open=lambda: pipeline.circuit_open)
            self._metrics.watch(
                "rabbitmq", self._broker_outage, circuit_open=lambda: confirm_channel.circuit_open
            )
            self._metrics.watch_commands(pipeline)
            processor, journal, sweep, ageing, spans, open_jobs, urgent, noting = assemble(
                settings=settings,
                engine=self._engine,
                slots=self._slots,
                fronts=self._fronts,
                metrics=self._metrics,
                ended_jobs=self._ended_jobs,
                work_counting=self._work_counting,
                ended_counts=self._ended_counts,
                pipeline=pipeline,
                confirm_channel=confirm_channel,
                spans_to=spans_to,
                leaving=self._stopping,
                on_engine_death=self._on_engine_death,
            )
            beating = background.create_task(self._heartbeats.write(pipeline))
            republishing = [background.create_task(sweep.run()), background.create_task(ageing.run())]
            chores = [
                beating,
                background.create_task(pipeline.run()),
                background.create_task(self._pool_pause.follow(pipeline)),
                background.create_task(journal.write_first()),
                background.create_task(journal.write_streamed()),
                background.create_task(journal.write_all()),
                background.create_task(
                    keep_deletion_cost(settings, cost=lambda: deletion_cost(processor.runs.values()))
                ),
            ]
            if spans is not None:
                chores.append(background.create_task(spans.run()))
            chores += [background.create_task(observer.run()) for observer in noting]
            try:
                await self._serve(processor, urgent, broker)
                if spans is not None:
                    await spans.finish(within_s=FLUSH_S)
                await open_jobs.flush()
                # First, because a heartbeat that is being written would put the worker back on the map.
                await cancel_and_wait(beating)
                await self._heartbeats.forget(pipeline)
            except (InferfleetError, EngineDeadError) as error:
                # Raised behind the task group, which would wrap it.
                self._failure = error
            finally:
                # These use both services, so they end before their connections do.
                await cancel_and_wait(*republishing)
                await cancel_and_wait(*chores)
                await self._swaps.aclose()
                await self._engine.stop()
        if self._failure is not None:
            raise self._failure
        logger.info("worker has stopped")

    def stop(self) -> None:
        """Begin to drain, unless the drain has begun."""
        self._stopping.set()
        # The sender of the command waits for an answer, even while the model still loads.
        self._heartbeats.enter(WorkerPhase.DRAINING)

    def _signalled(self) -> None:
        """Begin to drain; at the second signal, stop waiting for running jobs and hand them over."""
        if self._was_signalled:
            self._hurrying.set()
        self._was_signalled = True
        self.stop()

    async def _serve(self, processor: Processor, urgent: UrgentJobs, broker: AsyncExitStack) -> None:
        # The broker comes first: a wrong password should not wait for the model, and the pool accepts jobs
        # as soon as it has its queues.
        opened = partial(self._subscribe, processor, urgent)
        subscription: Subscription | None = await broker.enter_async_context(opened())
        self._start_times.ended(StartPart.SERVICES)
        loading = time.monotonic()
        await self._unless_stopped(self._engine.start())
        if not self._stopping.is_set():
            self._metrics.load_s = time.monotonic() - loading
            self._note_start()
            self._pool_pause.compare()
        for endpoint in self._engine.endpoints:
            # Made here, so that the first job does not wait for it.
            _ = ENDPOINTS[endpoint].request
        self._on_warm()
        while subscription is not None and not self._stopping.is_set():
            self._heartbeats.enter(WorkerPhase.READY)
            logger.info("ready", extra={"model": self._engine.model, "identity": self._identity()})
            self._slots.supply_from(subscription)
            await self._unless_stopped(self._pool_pause.known.wait())
            await prefetch(subscription, self._slots, look_ahead=self._settings.look_ahead)
            await self._unless_stopped(self._until_closed(subscription, urgent))
            if not self._stopping.is_set():
                self._broker_outage.began()
                logger.warning(
                    "lost the connection to RabbitMQ; running jobs continue",
                    extra={"running": len(self._tasks)},
                )
                subscription = await self._unless_stopped(_reconnect(broker, opened))
                if subscription is not None and (lasted_s := self._broker_outage.ended()) is not None:
                    logger.warning("reconnected to RabbitMQ after %.1f s", lasted_s)
        self._heartbeats.enter(WorkerPhase.DRAINING)
        self._metrics.drain_began()
        if subscription is not None:
            await subscription.stop_consuming()
        await self._swaps.aclose()
        await self._drain(processor)

    def _note_start(self) -> None:
        engine, times = self._engine.current, self._start_times
        times.ended(StartPart.ENGINE, engine.start_parts if isinstance(engine, TimesItsStart) else None)
        self._metrics.start_parts = times.parts
        logger.info("started in %s", times, extra={"parts": times.parts})

    async def _until_closed(self, subscription: Subscription, urgent: UrgentJobs) -> None:
        adapting = asyncio.create_task(
            adapt_intake(
                subscription,
                self._engine,
                self._slots,
                max_running=self._settings.max_running,
                look_ahead=self._settings.look_ahead,
            )
        )
        taking = asyncio.create_task(urgent.take(subscription))
        try:
            await subscription.wait_closed()
        finally:
            await cancel_and_wait(adapting, taking)

    async def _drain(self, processor: Processor) -> None:
        """Let jobs finish in time, hand over the others, and wait until all deliveries are settled."""
        logger.info("draining", extra={"running": len(self._tasks)})
        self._slots.close()
        for run in processor.runs.values():
            run.wake()
        if self._tasks:
            hurry = asyncio.create_task(self._hurrying.wait())
            # A task that ends leaves the set, perhaps before this wait begins.
            finished = asyncio.create_task(asyncio.wait([*self._tasks]))
            await asyncio.wait(
                {hurry, finished},
                timeout=self._settings.drain_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            hurry.cancel()
        for run in processor.runs.values():
            run.interrupt(Interruption.HAND_OVER)
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=SETTLE_GRACE_S)
            for task in left:
                # Redis is unreachable. The broker will deliver these messages again after this process.
                logger.error("exiting before a job was settled")
                task.cancel()

    def _take(self, processor: Processor, delivery: Delivery) -> None:
        """Start to process a delivery."""
        task = asyncio.create_task(processor.process(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_engine_death(self, error: EngineDeadError) -> None:
        if self._failure is None:
            logger.error("the engine is dead; requeueing all jobs: %s", error)
            self._failure = error
            self.stop()

    def _subscribe(
        self, processor: Processor, urgent: UrgentJobs
    ) -> AbstractAsyncContextManager[Subscription]:
        return subscribe(
            self._settings,
            on_delivery=partial(self._take, processor),
            on_control=partial(self._handle_command, processor, urgent),
        )

    def _handle_command(self, processor: Processor, urgent: UrgentJobs, body: bytes) -> None:
        """Obey a command, if it concerns this worker."""
        try:
            order = control.validate_json(body)
        except ValidationError as error:
            logger.warning(
                "cannot understand a command in the control queue", extra={"problems": error.error_count()}
            )
            return
        match order:
            case CancelJob(job_id=job_id, keep=keep):
                processor.interrupt(job_id, Interruption.INTERRUPTED if keep else Interruption.CANCELLED)
            case UrgentJob(job_id=job_id):
                urgent.announced(job_id)
            case DrainWorker(worker_id=worker_id):
                if worker_id == self._settings.worker_id:
                    self.stop()
            case SwapModel(worker_id=worker_id):
                # A worker that loads or drains ignores it, and the sender repeats it.
                if worker_id == self._settings.worker_id and self._heartbeats.serving:
                    self._swaps.begin(order)

    def _show_swap(self, swap: ModelSwap) -> None:
        self._pool_pause.compare()
        self._heartbeats.show_swap(swap)
        if not swap.busy:
            self._metrics.swaps[swap.state] += 1

    def _identity(self) -> dict[str, str]:
        """Return all parts of the model's identity for the log, which shows why two workers differ."""
        identity = self._engine.identity
        return {} if identity is None else {"short": identity.short, **asdict(identity)}

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Wait for the work. If the worker is told to stop first, cancel the work and return ``None``."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            await cancel_and_wait(working, stopping)

    @asynccontextmanager
    async def _signals(self) -> AsyncGenerator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _tracing(self) -> AbstractAsyncContextManager[SpanExport | None]:
        if not self._settings.tracing:
            return nullcontext()
        return exporting_spans("inferfleet-worker", instance=self._settings.worker_id)

    @property
    def _refused(self) -> ServiceRefusedError | None:
        """Return why Redis refuses what the worker needs; ``None`` if it does not."""
        return None if self._pipeline is None else self._pipeline.refused

    def _http(self) -> AbstractAsyncContextManager[int]:
        return serve_http(
            host=self._settings.http_host,
            port=self._settings.http_port,
            heartbeat=self._heartbeats.heartbeat,
            ready=lambda: self.phase is WorkerPhase.READY and self._refused is None,
            metrics=self._metrics,
            lines_dropped=self._lines_dropped,
        )


async def _reconnect(
    broker: AsyncExitStack, opened: Callable[[], AbstractAsyncContextManager[Subscription]]
) -> Subscription:
    await broker.aclose()
    async for attempt in AsyncRetrying(
        # RabbitMQ granted at the start what it refuses here: running jobs continue until it does so again.
        retry=retry_if_exception_type((ServiceUnreachableError, ServiceRefusedError)),
        wait=wait_random_exponential(multiplier=0.2, max=5.0),
    ):
        with attempt:
            return await broker.enter_async_context(opened())
    raise AssertionError("tenacity returns or raises")
