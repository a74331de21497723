"""Processes the deliveries of one worker: reads each as a job and attempts it, and runs no job here twice."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager

from inferfleet.schemas import Failure, FailureCode
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.message import LaterContractError, read_job
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.worker.attempt import Attempts
from inferfleet.worker.broker import Delivery
from inferfleet.worker.job_run import JobRun
from inferfleet.worker.log import about
from inferfleet.worker.ports import EngineDeadError
from inferfleet.worker.settlement import Settlement
from inferfleet.worker.slots import Slots
from inferfleet.worker.stop_switch import Interruption

logger = logging.getLogger(__name__)

ERROR_PAUSE_S = 1.0
"""A pause before a job with an unexpected error is requeued, so that it does not spin."""


class Processor:
    """Processes deliveries, each by a concurrent call of ``process``."""

    def __init__(
        self,
        *,
        attempts: Attempts,
        settlement: Settlement,
        slots: Slots,
        clock: RedisClock,
        leaving: asyncio.Event,
        on_engine_death: Callable[[EngineDeadError], None],
    ) -> None:
        self._attempts = attempts
        self._settlement = settlement
        self._slots = slots
        self._clock = clock
        self._leaving = leaving
        self._on_engine_death = on_engine_death
        self._runs: dict[str, JobRun] = {}
        self._unreadable: Counter[str] = Counter()
        """The ids of the messages here that this worker cannot read."""
        self._settling = Outage()

    @property
    def runs(self) -> Mapping[str, JobRun]:
        """The jobs that run here, or wait for a slot or a retry, by id."""
        return self._runs

    @property
    def held(self) -> Collection[str]:
        """The jobs whose messages are here, those that this worker cannot read included."""
        return {*self._runs, *self._unreadable}

    @contextmanager
    def _unread(self, delivery: Delivery) -> Generator[None]:
        message_id = delivery.message_id or ""
        self._unreadable[message_id] += 1
        try:
            yield
        finally:
            self._unreadable[message_id] -= 1
            if not self._unreadable[message_id]:
                del self._unreadable[message_id]

    def interrupt(self, job_id: str, reason: Interruption) -> None:
        """Stop a job if it is here."""
        if (run := self._runs.get(job_id)) is not None:
            run.interrupt(reason)
            self._slots.skip(run)

    async def process(self, delivery: Delivery) -> None:
        """Process a delivery, and the turns that it carries, until it is settled. Never raises."""
        if self._leaving.is_set():
            await delivery.requeue()
            return
        unsettled: Delivery | None = delivery
        try:
            while unsettled is not None:
                unsettled = await self._process(unsettled)
        except EngineDeadError as error:
            self._on_engine_death(error)
        except Exception:
            # Logged once for the whole outage, not every second for each delivery.
            if self._settling.began():
                logger.exception("failed to settle a job; requeueing its message")
            await asyncio.sleep(ERROR_PAUSE_S)
            await delivery.requeue()
        else:
            if (lasted_s := self._settling.ended()) is not None:
                logger.warning("settling jobs works again after %.1f s", lasted_s)

    async def _process(self, delivery: Delivery) -> Delivery | None:
        """Run a delivery's job. Return the delivery if it carries another job now."""
        try:
            job = read_job(
                delivery.body,
                message_type=delivery.properties.get("message_type", ""),
                content_encoding=delivery.properties.get("content_encoding", ""),
                headers=delivery.headers,
            )
            if "submitted_at" not in job.model_fields_set:
                job = job.model_copy(update={"submitted_at": self._clock.now()})
        except LaterContractError as error:
            with self._unread(delivery):
                await self._settlement.leave_to_newer(delivery, error)
            return None
        except InvalidJobError as error:
            failure = Failure(code=FailureCode.INVALID_REQUEST, message=f"not a job: {error}"[:4096])
            with self._unread(delivery):
                return await self._settlement.dead_letter_unreadable(
                    delivery, failure, is_running=lambda job_id: job_id in self._runs
                )
        if (known := self._runs.get(job.id)) is not None:
            self._deliver_again(known, delivery)
            return None
        run = self._runs[job.id] = JobRun(job=job, delivery=delivery, clock=self._clock)
        try:
            settled, carrying = await self._attempts.run(run)
        except Exception:
            # The caller requeues the delivery that it knows; a newer one has to be requeued here.
            if run.delivery is not delivery:
                await run.delivery.requeue()
            raise
        finally:
            self._slots.leave(run)
            del self._runs[job.id]
        if run.delivery is not settled:
            # The message was delivered again during the settlement; the record says what to do with it.
            await self.process(run.delivery)
        return carrying

    def _deliver_again(self, run: JobRun, delivery: Delivery) -> None:
        """Let the newest delivery of a running job be the one that is settled.

        The connection was lost, or the job was published twice. The job keeps running.
        """
        logger.info("job is already running here", extra=about(run.job, attempt=run.attempt))
        if delivery.witness is not None and run.delivery.witness is None:
            # The job has its own message now, and needs no other message to carry it.
            delivery.ack()
            return
        rank = run.rank
        run.delivery.ack()
        run.delivery = delivery
        if run.rank > rank:
            self._slots.moved_up(run)
        # If the job is paused, it now waits with the new delivery.
        run.wake()
