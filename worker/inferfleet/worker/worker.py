"""A worker's life: start up, serve, shut down. Read ``run`` from top to bottom."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import redis.asyncio as aioredis
from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from inferfleet.schemas.control import CancelJob, DrainWorker, control
from inferfleet.schemas.errors import InferfleetError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.clock import RedisClock
from inferfleet.wire.eviction import refuse_eviction
from inferfleet.wire.health import forget_heartbeat, write_heartbeat
from inferfleet.wire.limits import note_limit
from inferfleet.wire.outage import Outage
from inferfleet.wire.pipeline import CommandPipeline
from inferfleet.wire.publishing import ConfirmChannel
from inferfleet.wire.records import JobRecords
from inferfleet.wire.redis import open_redis
from inferfleet.wire.redis_access import WORKER
from inferfleet.wire.sessions import Sessions
from inferfleet.wire.tasks import cancel_and_wait
from inferfleet.worker.broker import Delivery, Session, open_session
from inferfleet.worker.deletion_cost import deletion_cost, keep_deletion_cost
from inferfleet.worker.http import serve_http
from inferfleet.worker.intake import adapt_intake
from inferfleet.worker.job_run import Interruption
from inferfleet.worker.journal import JournalWriter
from inferfleet.worker.lanes import Lanes
from inferfleet.worker.metrics import WorkerMetrics
from inferfleet.worker.ports import Engine, EngineDeadError
from inferfleet.worker.processor import Processor
from inferfleet.worker.settlement import Settlement
from inferfleet.worker.slots import Slots
from inferfleet.worker.turns import Turns

T = TypeVar("T")

logger = logging.getLogger(__name__)

HEARTBEATS_MISSED = 5
"""A worker is off the health map after so many heartbeats that did not come."""

ERROR_PAUSE_S = 1.0
"""A pause before a message goes back after an error that nobody foresaw, so that it does not spin."""


FORGET_TIMEOUT_S = 1.0
"""How long a worker that leaves tries to take itself off the health map."""

SETTLE_GRACE_S = 10.0
"""How long a drain waits for the last writes after it has stopped the last job."""


class Worker:
    """One process, one event loop, one engine."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        engine: Engine,
        on_warm: Callable[[], None] = lambda: None,
        lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._on_warm = on_warm
        self._lines_dropped = lines_dropped
        self._metrics = WorkerMetrics(pool=settings.pool)
        self._slots = Slots(settings.max_running)
        self._pipeline: CommandPipeline | None = None
        self._phase = WorkerPhase.LOADING
        self._phase_changed = asyncio.Event()
        self._clock = RedisClock()
        self._started_at = self._clock.now()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._was_signalled = False
        self._failure: InferfleetError | EngineDeadError | None = None
        # Read once: it is in files, and there may be none to open later.
        self._version = version("inferfleet")
        self._broker_outage = Outage()
        self._settling = Outage()
        self._beating = Outage()

    async def run(self) -> None:
        """Work until told to stop.

        Raises:
            ServiceUnreachableError: RabbitMQ or Redis did not answer at the start.
            ConfigurationError: The engine, the pool's queue or the HTTP port does not accept a setting,
                or Redis may evict keys.
            EngineDeadError: The engine died. All its jobs are back in the queue.

        """
        settings = self._settings
        confirm_channel = ConfirmChannel(
            settings.amqp_url,
            connect_timeout_s=settings.connect_timeout_s,
            confirm_timeout_s=settings.publish_timeout_s,
            name=f"{settings.worker_id} (publish)",
        )
        async with (
            self._signals(),
            _open_store(settings, self._clock) as client,
            aclosing(confirm_channel),
            self._http(),
            AsyncExitStack() as broker,
            asyncio.TaskGroup() as background,
        ):
            self._started_at = self._clock.now()
            self._pipeline = pipeline = CommandPipeline(client, patience_s=None, clock=self._clock)
            self._metrics.watch("redis", pipeline.outage)
            self._metrics.watch("rabbitmq", self._broker_outage)
            records = JobRecords(
                pipeline=pipeline,
                result_ttl_s=settings.result_ttl_s,
                queued_ttl_s=settings.queued_ttl_s,
            )
            sessions = Sessions(pipeline=pipeline, settings=settings)
            journal = JournalWriter(records=records, sessions=sessions, settings=settings)
            processor = Processor(
                settings=settings,
                engine=self._engine,
                records=records,
                journal=journal,
                turns=Turns(sessions),
                settlement=Settlement(
                    settings=settings,
                    records=records,
                    lanes=Lanes(
                        settings=settings,
                        records=records,
                        sessions=sessions,
                        confirm_channel=confirm_channel,
                    ),
                    journal=journal,
                    confirm_channel=confirm_channel,
                    slots=self._slots,
                    metrics=self._metrics,
                    leaving=self._stopping,
                ),
                slots=self._slots,
                metrics=self._metrics,
            )
            beating = background.create_task(self._beat(pipeline))
            chores = [
                beating,
                background.create_task(pipeline.run()),
                background.create_task(journal.write_first()),
                background.create_task(journal.write_streamed()),
                background.create_task(journal.write_all()),
                background.create_task(
                    keep_deletion_cost(settings, cost=lambda: deletion_cost(processor.runs.values()))
                ),
            ]
            try:
                await self._serve(processor, broker)
                # First: a heartbeat that is under way would put back what is taken off.
                await cancel_and_wait(beating)
                with suppress(TimeoutError):
                    # With Redis away, the heartbeat expires by itself.
                    async with asyncio.timeout(FORGET_TIMEOUT_S):
                        await forget_heartbeat(pipeline, settings.worker_id)
            except (InferfleetError, EngineDeadError) as error:
                # Raised after the task group, which would wrap it.
                self._failure = error
            finally:
                await cancel_and_wait(*chores)
                await self._engine.stop()
        if self._failure is not None:
            raise self._failure
        logger.info("worker has stopped")

    def stop(self) -> None:
        """Begin to drain, if that has not begun."""
        self._stopping.set()
        # Whoever gave the order waits for the answer, also while the model still loads.
        self._enter(WorkerPhase.DRAINING)

    def _signalled(self) -> None:
        """Begin to drain; at the second signal, stop waiting for running jobs and hand them over."""
        if self._was_signalled:
            self._hurrying.set()
        self._was_signalled = True
        self.stop()

    async def _serve(self, processor: Processor, broker: AsyncExitStack) -> None:
        # The broker comes first: a wrong password should not wait for the model, and jobs are accepted
        # as soon as the pool has its queues.
        opened = partial(self._open_session, processor)
        session: Session | None = await broker.enter_async_context(opened())
        await self._unless_stopped(self._engine.start())
        self._on_warm()
        while session is not None and not self._stopping.is_set():
            self._enter(WorkerPhase.READY)
            logger.info("ready", extra={"model": self._engine.model, "identity": self._identity()})
            self._slots.supply_from(session)
            await session.hold(self._slots.limit + self._settings.look_ahead)
            await self._unless_stopped(self._until_closed(session))
            if not self._stopping.is_set():
                self._broker_outage.began()
                logger.warning("lost the broker; what runs goes on", extra={"running": len(self._tasks)})
                session = await self._unless_stopped(_reconnect(broker, opened))
                if session is not None and (lasted_s := self._broker_outage.ended()) is not None:
                    logger.warning("the broker is back, after %.1f s", lasted_s)
        self._enter(WorkerPhase.DRAINING)
        if session is not None:
            await session.stop_consuming()
        await self._drain(processor)

    async def _until_closed(self, session: Session) -> None:
        adapting = asyncio.create_task(
            adapt_intake(
                session,
                self._engine,
                self._slots,
                max_running=self._settings.max_running,
                look_ahead=self._settings.look_ahead,
            )
        )
        try:
            await session.wait_closed()
        finally:
            await cancel_and_wait(adapting)

    async def _drain(self, processor: Processor) -> None:
        """Let jobs finish that do so in time, hand the others over, and wait until all is settled."""
        logger.info("draining", extra={"running": len(self._tasks)})
        self._slots.close()
        for run in processor.runs.values():
            run.wake()
        if self._tasks:
            hurry = asyncio.create_task(self._hurrying.wait())
            finished = asyncio.ensure_future(asyncio.wait(self._tasks))
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
                # The store is away. The broker will deliver these again once we are gone.
                logger.error("a job could not be settled before the exit")
                task.cancel()

    def _take(self, processor: Processor, delivery: Delivery) -> None:
        """Start on a delivery."""
        task = asyncio.create_task(self._process(processor, delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _process(self, processor: Processor, delivery: Delivery) -> None:
        if self._stopping.is_set():
            await delivery.requeue()
            return
        try:
            await processor.process(delivery)
        except EngineDeadError as error:
            if self._failure is None:
                logger.error("the engine is dead; all jobs go back: %s", error)
                self._failure = error
                self.stop()
        except Exception:
            # Once, and not every second for each of them, for as long as it lasts.
            if self._settling.began():
                logger.exception("a job could not be settled; its message goes back")
            await asyncio.sleep(ERROR_PAUSE_S)
            await delivery.requeue()
        else:
            if (lasted_s := self._settling.ended()) is not None:
                logger.warning("jobs are settled again, after %.1f s", lasted_s)

    def _open_session(self, processor: Processor) -> AbstractAsyncContextManager[Session]:
        return open_session(
            self._settings,
            on_delivery=partial(self._take, processor),
            on_control=partial(self._obey, processor),
        )

    def _obey(self, processor: Processor, body: bytes) -> None:
        """Follow an order from the control exchange, if it is for us."""
        try:
            order = control.validate_json(body)
        except ValidationError as error:
            logger.warning(
                "an order on the control exchange is not understood", extra={"problems": error.error_count()}
            )
            return
        match order:
            case CancelJob(job_id=job_id, keep=keep):
                processor.interrupt(job_id, Interruption.INTERRUPTED if keep else Interruption.CANCELLED)
            case DrainWorker(worker_id=worker_id):
                if worker_id == self._settings.worker_id:
                    self.stop()

    async def _beat(self, pipeline: CommandPipeline) -> None:
        """Write the heartbeat at every interval, and at once when the phase changes.

        One that fails is missed for a moment by who looks at the map; that is no reason to end.
        """
        interval_s = self._settings.heartbeat_interval_s
        while True:
            self._phase_changed.clear()
            try:
                await write_heartbeat(pipeline, self._heartbeat(), ttl_s=interval_s * HEARTBEATS_MISSED)
                await note_limit(pipeline, self._settings.pool, self._settings.queue_max_length)
            except Exception:
                if self._beating.began():
                    logger.exception("cannot write the heartbeat; trying again until it works")
            else:
                if (lasted_s := self._beating.ended()) is not None:
                    logger.warning("the heartbeat is written again, after %.1f s", lasted_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._phase_changed.wait()

    def _enter(self, phase: WorkerPhase) -> None:
        self._phase = phase
        self._phase_changed.set()

    def _heartbeat(self) -> Heartbeat:
        stats = self._engine.stats()
        return Heartbeat(
            worker_id=self._settings.worker_id,
            pool=self._settings.pool,
            phase=self._phase,
            engine=self._settings.engine,
            model=self._engine.model,
            model_identity=identity.short if (identity := self._engine.identity) else "",
            version=self._version,
            running=stats.running,
            waiting=stats.waiting,
            held=self._slots.waiting,
            kv_cache_usage=stats.kv_cache_usage,
            tokens_generated=self._metrics.tokens_generated,
            started_at=self._started_at,
            seen_at=self._clock.now(),
        )

    def _identity(self) -> dict[str, str]:
        """All parts of the model's identity: why two workers differ is in their logs."""
        identity = self._engine.identity
        return {} if identity is None else {"short": identity.short, **asdict(identity)}

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Wait for the work, or for the order to stop, which cancels it and gives ``None``."""
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

    @property
    def _refused(self) -> ServiceRefusedError | None:
        """Why Redis does not do what is needed, while it says so."""
        return None if self._pipeline is None else self._pipeline.refused

    def _http(self) -> AbstractAsyncContextManager[int]:
        return serve_http(
            host=self._settings.http_host,
            port=self._settings.http_port,
            heartbeat=self._heartbeat,
            ready=lambda: self._phase is WorkerPhase.READY and self._refused is None,
            metrics=self._metrics,
            lines_dropped=self._lines_dropped,
        )


@asynccontextmanager
async def _open_store(settings: WorkerSettings, clock: RedisClock) -> AsyncGenerator[aioredis.Redis]:
    async with open_redis(
        settings.redis_url, access=WORKER, clock=clock, patience_s=settings.connect_timeout_s
    ) as client:
        await refuse_eviction(client, allowed=settings.allow_eviction)
        yield client


async def _reconnect(
    broker: AsyncExitStack, opened: Callable[[], AbstractAsyncContextManager[Session]]
) -> Session:
    await broker.aclose()
    async for attempt in AsyncRetrying(
        # What is refused now, a permission for example, was given once: what runs goes on until it is again.
        retry=retry_if_exception_type((ServiceUnreachableError, ServiceRefusedError)),
        wait=wait_random_exponential(multiplier=0.2, max=5.0),
    ):
        with attempt:
            return await broker.enter_async_context(opened())
    raise AssertionError("tenacity returns or raises")
