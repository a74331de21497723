"""A runner: takes runs from a queue, brings each forward, and lets others go on when it stops.

A message is acked when its run waits, has ended, or is gone: whatever ends a wait publishes the run again.
Until then the broker delivers it to another runner if this one dies.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import uuid_utils

from inferfleet.agents.agent import Agent, by_name
from inferfleet.agents.ending import fail
from inferfleet.agents.events import RunEvents
from inferfleet.agents.held_run import HeldRun
from inferfleet.agents.http import serve_http
from inferfleet.agents.metrics import RunnerMetrics
from inferfleet.agents.run_loop import Ended, HandedOver, Outcome, RunLoop
from inferfleet.agents.runs import AgentRuns
from inferfleet.agents.settings import RunnerSettings
from inferfleet.agents.sweep import Sweep
from inferfleet.producer import Fleet
from inferfleet.producer.background import background
from inferfleet.schemas.errors import (
    ConfigurationError,
    InferfleetError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.run import (
    RunFailure,
    RunFailureCode,
    RunLimits,
    RunOrder,
    RunRecord,
)
from inferfleet.wire.rabbitmq.run_queue import RunConsumer, RunDelivery, consuming_runs
from inferfleet.wire.redis.replicas import Replicas
from inferfleet.wire.redis.runs import Claimed, Held, NothingToDo, RunLostError
from inferfleet.wire.tasks import cancel_and_wait, to_its_end
from inferfleet.wire.tracing import exporting_spans

if TYPE_CHECKING:
    from inferfleet.agents.run_spans import RunSpans

logger = logging.getLogger(__name__)

MAX_CLAIMS: Final = 5
"""How many runners may lose a run in a row without moving it on."""

AGAIN_S: Final = 1.0
"""How long a runner waits after a service has failed."""

RELEASE_S: Final = 5.0
"""How long a stopping runner tries to hand a run over. If it fails, others wait for the lease."""


def prefetch_of(settings: RunnerSettings) -> int:
    """Return how many messages a runner has at once.

    A few more than it has runs, because some may wait for the lease of a runner that has died. Not many:
    runners scale by the length of the queue, and one that is added gets none of these.
    """
    return settings.max_runs + settings.max_runs // 8


async def run_agents(agents: Iterable[Agent], settings: RunnerSettings) -> None:
    """Run agents until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: Two agents have the same name, one has a ``timeout_s`` above ``queued_ttl_s``, an
            MCP server does not answer, or OpenTelemetry is to be used and not installed.
        InferfleetError: What ``Fleet.connect`` raises.

    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with _tracing(settings) as spans, Fleet.connect(settings) as fleet:
        await Runner(fleet, agents, settings, stopping=stopping, spans=spans).run()


@asynccontextmanager
async def _tracing(settings: RunnerSettings) -> AsyncGenerator[RunSpans | None]:
    """Export the spans of runs while the block runs, if the settings ask for that."""
    if not settings.tracing:
        yield None
        return
    async with exporting_spans("inferfleet-runner", instance=settings.client_id) as export:
        from inferfleet.agents.run_spans import RunSpans

        yield RunSpans(export)


class Runner:
    """Runs the runs of a queue, as many at a time as the settings say."""

    def __init__(
        self,
        fleet: Fleet,
        agents: Iterable[Agent],
        settings: RunnerSettings,
        *,
        stopping: asyncio.Event,
        spans: RunSpans | None = None,
    ) -> None:
        self._fleet = fleet
        self._spans = spans
        self._agents: Mapping[str, Agent] = by_name(agents)
        for agent in self._agents.values():
            if agent.limits.timeout_s > settings.queued_ttl_s:
                raise ConfigurationError(
                    f"agent {agent.name}: timeout_s={agent.limits.timeout_s:g} is more than "
                    f"INFERFLEET_QUEUED_TTL_S={settings.queued_ttl_s}, for which Redis keeps an unfinished "
                    "run: change one"
                )
        self._settings = settings
        self._stopping = stopping
        self._metrics = RunnerMetrics(queue=settings.agent_queue)
        events = RunEvents(fleet.pipeline, most=settings.webhook_max_undelivered, metrics=self._metrics)
        self._runs = AgentRuns(fleet, events=events)
        # A call that a person would have to be asked about later can as well wait now.
        self._replicas = Replicas(fleet.pipeline, settings, patience_s=None)
        self._places = asyncio.Semaphore(settings.max_runs)
        self._tasks: set[asyncio.Task[None]] = set()
        self._takes_runs = False

    async def run(self) -> None:
        """Take runs until ``stopping`` is set; then wait for tool calls, and hand over the runs.

        Raises:
            ConfigurationError: An agent's MCP server does not answer, or the port for health is taken.

        """
        async with serve_http(
            self._settings,
            agents=lambda: self._agents.keys(),
            ready=self._is_ready,
            metrics=self._metrics,
        ):
            await self._run()

    async def _run(self) -> None:
        settings = self._settings
        self._agents = {name: await agent.with_mcp_tools() for name, agent in self._agents.items()}
        self._metrics.know(self._agents.values())
        sweep = Sweep(
            self._fleet, self._runs, queue=settings.agent_queue, interval_s=settings.sweep_interval_s
        )
        async with background(sweep.run()), self._tasks_ended():
            while not self._stopping.is_set():
                try:
                    async with consuming_runs(
                        settings,
                        settings.agent_queue,
                        prefetch=prefetch_of(settings),
                        name=f"{settings.client_id} (runs)",
                    ) as consumer:
                        logger.info(
                            "running %s from the queue %s", ", ".join(self._agents), settings.agent_queue
                        )
                        self._takes_runs = True
                        await self._consume(consumer)
                except (ServiceUnreachableError, ServiceRefusedError) as error:
                    logger.warning("cannot consume runs (%s)", error)
                    await self._pause()

    @asynccontextmanager
    async def _tasks_ended(self) -> AsyncGenerator[None]:
        """Wait for tool calls when the block ends, and hand over the runs that are left."""
        try:
            yield
            # The connection has broken, so that no consumer has waited for them.
            await self._drain()
        finally:
            await cancel_and_wait(*self._tasks)

    async def _consume(self, consumer: RunConsumer) -> None:
        """Start what arrives, until the connection breaks, or the runner stops and all runs have ended."""
        stops = asyncio.create_task(self._stopping.wait())
        arrives = asyncio.create_task(consumer.next())
        try:
            while True:
                await asyncio.wait([stops, arrives], return_when=asyncio.FIRST_COMPLETED)
                if stops.done():
                    await consumer.stop()
                    await self._drain()
                    return
                if (delivery := arrives.result()) is None:
                    logger.warning("lost the connection to RabbitMQ, or the queue; connecting again")
                    return
                task = asyncio.create_task(self._handle(delivery))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                arrives = asyncio.create_task(consumer.next())
        finally:
            await cancel_and_wait(stops, arrives)

    async def _drain(self) -> None:
        if self._tasks:
            logger.info("draining: waiting for %d runs", len(self._tasks))
            await asyncio.wait(self._tasks, timeout=self._settings.drain_timeout_s)
        # While the connection is open, so that their messages are settled.
        await cancel_and_wait(*self._tasks)

    async def _handle(self, delivery: RunDelivery) -> None:
        """Bring the run of a message forward, and settle the message."""
        try:
            while not self._stopping.is_set():
                async with self._places:
                    claim = await self._claim_and_run(delivery.run_id)
                if claim is None:
                    await delivery.ack()
                    return
                await self._pause(claim.left_s)
        except InferfleetError as error:
            logger.warning("run %s is interrupted (%s)", delivery.run_id, error)
            await self._pause()
        except Exception:
            logger.exception("run %s is interrupted", delivery.run_id)
            await self._pause()
        await delivery.requeue()

    async def _claim_and_run(self, run_id: str) -> Held | None:
        """Bring a run forward. Return for how long somebody has it; ``None`` if nothing is left to do."""
        if self._stopping.is_set():
            return Held(0)
        fence = uuid_utils.uuid7().hex
        claim = await self._runs.records.claim(
            run_id, fence=fence, runner=self._settings.client_id, lease_s=self._settings.lease_s
        )
        match claim:
            case Held():
                return claim
            case NothingToDo():
                return None
            case Claimed(claims):
                record = await self._runs.records.read(run_id)
                if record is None:
                    return None
                return await self._bring_forward(record, fence, claims)

    async def _bring_forward(self, record: RunRecord, fence: str, claims: int) -> Held | None:
        order = record.order
        agent = self._agents.get(order.agent)
        held = HeldRun(
            order,
            _limits(order, agent),
            announced=record.announced,
            traceparent=order.traceparent if self._spans is None else self._spans.traceparent(order),
            records=self._runs.records,
            replicas=self._replicas,
            metrics=self._metrics,
            fence=fence,
            lease_s=self._settings.lease_s,
        )
        try:
            with self._metrics.holding():
                outcome = await self._outcome(held, agent, claims)
        except RunLostError:
            logger.warning("another runner has run %s", order.id)
            return None
        except (asyncio.CancelledError, InferfleetError):
            await to_its_end(self._release(held))
            raise
        if isinstance(outcome, Ended):
            self._metrics.run_ended(order.agent, outcome.result)
            if self._spans is not None:
                self._spans.ended(order, outcome.result, ended_ms=self._runs.records.now_ms())
            logger.info("run %s of %s has %s", order.id, order.agent, outcome.result.state)
        return Held(0) if isinstance(outcome, HandedOver) else None

    async def _outcome(self, held: HeldRun, agent: Agent | None, claims: int) -> Outcome:
        order = held.order
        if claims > MAX_CLAIMS:
            failure = RunFailure(
                code=RunFailureCode.RUNNER_LOST,
                message=f"{claims - 1} runners in a row have died or failed here; see their logs",
            )
            try:
                await held.load()
            except ValueError:
                # That may be what they have died of.
                logger.exception("the steps of run %s cannot be read: what it has started goes on", order.id)
            return Ended(await fail(held, failure, fleet=self._fleet, runs=self._runs))
        await held.load()
        if agent is None:
            known = ", ".join(sorted(self._agents))
            failure = RunFailure(
                code=RunFailureCode.UNKNOWN_AGENT,
                message=f"a runner of queue {order.queue!r} knows no agent {order.agent!r}, only {known}",
            )
            return Ended(await fail(held, failure, fleet=self._fleet, runs=self._runs))
        loop = RunLoop(held, agent, fleet=self._fleet, runs=self._runs, stopping=self._stopping)
        return await loop.run()

    async def _release(self, held: HeldRun) -> None:
        try:
            async with asyncio.timeout(RELEASE_S):
                await held.release()
        except (RunLostError, InferfleetError, TimeoutError) as error:
            logger.warning(
                "cannot hand over run %s; others wait until its lease has run out (%s)",
                held.order.id,
                str(error) or f"not within {RELEASE_S:g} s",
            )

    def _is_ready(self) -> bool:
        return self._takes_runs and not self._stopping.is_set() and self._fleet.pipeline.refused is None

    async def _pause(self, seconds: float = AGAIN_S) -> None:
        """Wait, or until the runner stops."""
        stops = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([stops], timeout=seconds)
        await cancel_and_wait(stops)


def _limits(order: RunOrder, agent: Agent | None) -> RunLimits:
    limits = agent.limits if agent else RunLimits()
    if order.limits is not None:
        limits = order.limits.within(limits)
    # Not validated: a parent may have nothing left.
    left: dict[str, Any] = {
        "max_tokens": order.max_tokens,
        "max_cost": order.max_cost,
        "prices": order.prices,
    }
    return RunLimits.model_construct(_fields_set=set(left), **left).within(limits)
