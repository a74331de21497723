"""Delivers events to endpoints, and tries again what they do not accept. It runs in every gateway.

Any number of gateways share the work by claims (``wire.redis.webhooks``), and one that dies loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Final

from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.webhooks.delivery_spans import DeliverySpans
from inferfleet.gateway.webhooks.kinds import KINDS, event_of
from inferfleet.gateway.webhooks.sending import Sender, Sent
from inferfleet.gateway.webhooks.signing import signed
from inferfleet.schemas.errors import InferfleetError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis.webhooks import (
    Claimed,
    Entered,
    Settled,
    WatchedJob,
    WebhookEndpoint,
    WebhookStore,
)
from inferfleet.wire.tasks import TaskGroup

logger = logging.getLogger(__name__)

POLL_S: Final = 1.0
"""How often a gateway looks for what is due."""

LOOK_S: Final = 60.0
"""How often a watched job is looked at whose gateway has not heard of its end: it is gone."""

LOOK_BATCH: Final = 500
"""How many jobs are looked at in one round trip."""

READ_RESULTS: Final = 20
"""How many results are read at a time: each may have some megabytes."""

MISSING_S: Final = 3600.0
"""For how long a job without a record is looked at. After a failover that has forgotten the record, whoever
has the job makes it again."""

CLAIM_S: Final = 60.0
"""How much longer than its request may take a delivery is claimed: to record how it went."""

GIVE_BACK_S: Final = 1.0
"""How long a gateway that stops tries to give back what it has claimed."""

MAX_OWN: Final = 100_000
"""Of how many jobs a gateway hears when they end. Others are found when they are looked at."""

PER_ENDPOINT: Final = 4
"""How many requests a gateway has under way to one endpoint, so that a slow one does not hold up others."""

IN_ALL: Final = 512
"""How many requests a gateway has under way to all endpoints."""

RETRY_AFTER_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""The pauses after the failed tries of an event, a little more than three days in all. Those that Standard
Webhooks recommend."""

JITTER: Final = 0.2
"""By how much of itself a pause is longer at most."""

DISABLE_AFTER_S: Final = 3 * 24 * 3600
"""For how long an endpoint may accept nothing until it is disabled."""


class Delivery:
    """Makes events of the ends of watched jobs, and delivers events."""

    def __init__(
        self,
        store: WebhookStore,
        sender: Sender,
        metrics: GatewayMetrics,
        *,
        timeout_s: float,
        max_undelivered: int,
        spans: DeliverySpans | None = None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._metrics = metrics
        self._spans = spans
        self._claim_ms = int((timeout_s + CLAIM_S) * 1000)
        self._max_undelivered = max_undelivered
        self._under_way: Counter[str] = Counter()
        self._own: dict[str, WatchedJob] = {}
        """Jobs that were submitted by this gateway and have not ended, as far as it has heard."""
        self._ended: list[WatchedJob] = []
        """Jobs of whose ends this gateway has heard since the last round."""
        self._missing: dict[str, float] = {}
        """When jobs were first seen without a record."""
        self._reading = asyncio.Semaphore(READ_RESULTS)
        self._wake = asyncio.Event()
        self._stopping_since: float | None = None
        self._outage = Outage()

    def note(self, jobs: Sequence[WatchedJob]) -> None:
        """Note jobs that are watched from now on. Some may have ended already."""
        self._own.update((job.job_id, job) for job in jobs)
        while len(self._own) > MAX_OWN:
            del self._own[next(iter(self._own))]
        self.wake()

    def heard(self, job_ids: Sequence[str]) -> None:
        """Hear of jobs that have ended, of which some may be watched."""
        if found := [self._own.pop(job_id) for job_id in job_ids if job_id in self._own]:
            self._ended += found
            self.wake()

    def wake(self) -> None:
        """Look at once for what is due."""
        self._wake.set()

    def stop(self) -> None:
        """Take nothing more."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        self.wake()

    @property
    def stops_for_s(self) -> float:
        """How many seconds ago ``stop`` was called first."""
        return 0.0 if self._stopping_since is None else time.monotonic() - self._stopping_since

    async def run(self) -> None:
        """Deliver until ``stop`` is called, and end when nothing is under way.

        What is under way when this is cancelled is given back, and delivered again by another gateway.
        """
        async with TaskGroup() as sends:
            while self._stopping_since is None:
                self._wake.clear()
                more = False
                try:
                    more = await self._look()
                    await self._deliver_due(sends)
                except InferfleetError as error:
                    if self._outage.began():
                        logger.warning("cannot deliver webhooks (%s)", error)
                except Exception:
                    # An entry that cannot be read, say. It is claimed, so the others go on.
                    logger.exception("webhooks: a round failed")
                else:
                    if (lasted_s := self._outage.ended()) is not None:
                        logger.warning("delivering webhooks works again after %.1f s", lasted_s)
                if not more:
                    await self._pause()

    async def give_back(self) -> None:
        """Let another gateway tell the ends of which this one has heard too late. Never raises."""
        if self._ended:
            with suppress(InferfleetError, TimeoutError):
                async with asyncio.timeout(GIVE_BACK_S):
                    await self._store.look_now(self._ended)

    async def tell(self, tenant: str, event: WebhookEvent) -> None:
        """Enter an event for a tenant's endpoints."""
        entered = await self._store.enter(tenant, event, most=self._max_undelivered)
        for endpoint_id, became in entered.items():
            if became is Entered.FULL:
                self._metrics.webhook_no_room.inc()
                logger.warning(
                    "webhooks: event %s is dropped, because endpoint %s has %d undelivered events "
                    "(INFERFLEET_WEBHOOK_MAX_UNDELIVERED)",
                    event.id,
                    endpoint_id,
                    self._max_undelivered,
                )
        self.wake()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()

    async def _look(self) -> bool:
        """Look at watched jobs, and enter events for those that have ended. Return whether more are due."""
        if ended := self._ended[:LOOK_BATCH]:
            await self._store.look_now(ended)
            del self._ended[: len(ended)]
        jobs = await self._store.claim_watched(for_ms=int(LOOK_S * 1000), limit=LOOK_BATCH)
        # A kind that only a newer gateway knows is left to that.
        await self._tell_ends([job for job in jobs if job.kind in KINDS])
        return len(jobs) == LOOK_BATCH or bool(self._ended)

    async def _tell_ends(self, jobs: Sequence[WatchedJob]) -> None:
        """Tell the ends of those jobs that have ended. One whose end cannot be told holds up no other."""
        outcomes = await asyncio.gather(*map(self._tell_end, jobs), return_exceptions=True)
        over = [job for job, outcome in zip(jobs, outcomes, strict=True) if outcome is True]
        for job in over:
            self._own.pop(job.job_id, None)
            self._missing.pop(job.job_id, None)
        if over:
            # Only now: should this process die before, somebody else makes the same events.
            await self._store.forget(over)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _tell_end(self, job: WatchedJob) -> bool:
        """Tell the end of a job if it has ended. Return whether nobody has to look at it again."""
        reads = KINDS[job.kind].reads_result
        try:
            async with self._reading if reads else nullcontext():
                end = await self._store.end(job.job_id, result=reads)
                if end.state is None:
                    return self._lost(job)
                if not end.state.terminal:
                    return False
                event = event_of(job, end, end.state)
        except (ValueError, LookupError, TypeError):
            # Another version may read what this one cannot.
            logger.exception("webhooks: the end of job %s cannot be read", job.job_id)
            return False
        await self.tell(job.tenant, event)
        return True

    def _lost(self, job: WatchedJob) -> bool:
        """Return whether the record of a job is missing for so long that nobody makes it again."""
        now = time.monotonic()
        if now - self._missing.setdefault(job.job_id, now) < MISSING_S:
            while len(self._missing) > MAX_OWN:
                del self._missing[next(iter(self._missing))]
            return False
        logger.warning("webhooks: Redis has no record of job %s, so no event is sent for its end", job.job_id)
        return True

    async def _deliver_due(self, sends: TaskGroup) -> None:
        due_ms = await self._store.due_endpoints(limit=IN_ALL)
        now_ms = self._store.clock.now_ms()
        self._metrics.webhook_overdue.set((now_ms - min(due_ms.values(), default=now_ms)) / 1000)
        for endpoint_id in due_ms:
            room = min(PER_ENDPOINT - self._under_way[endpoint_id], IN_ALL - self._under_way.total())
            if room <= 0:
                continue
            for claimed in await self._store.claim(endpoint_id, for_ms=self._claim_ms, limit=room):
                self._under_way[endpoint_id] += 1
                sends.create_task(self._deliver(endpoint_id, claimed))

    async def _deliver(self, endpoint_id: str, claimed: Claimed) -> None:
        try:
            endpoint = await self._store.endpoint(endpoint_id)
            if endpoint is not None and endpoint.disabled_ms:
                await self._drop(endpoint)
            elif endpoint is not None:
                send = partial(self.send, endpoint, claimed.event)
                sent = await (send() if self._spans is None else self._spans.send(endpoint, claimed, send))
                async with asyncio.timeout(CLAIM_S):
                    await self._settle(endpoint, claimed, sent)
        except asyncio.CancelledError:
            # This gateway stops, and nobody else has to wait for the end of the claim.
            with suppress(InferfleetError, TimeoutError):
                async with asyncio.timeout(GIVE_BACK_S):
                    await self._store.give_back(endpoint_id, claimed)
            raise
        except (InferfleetError, TimeoutError) as error:
            # The claim ends, and somebody delivers it again.
            logger.warning("webhooks: event %s may be delivered again (%r)", claimed.event.id, error)
        except Exception:
            logger.exception("webhooks: event %s cannot be delivered", claimed.event.id)
        finally:
            self._under_way[endpoint_id] -= 1
            if not self._under_way[endpoint_id]:
                del self._under_way[endpoint_id]
            self.wake()

    async def send(
        self, endpoint: WebhookEndpoint, event: WebhookEvent, trace: Mapping[str, str] = {}
    ) -> Sent:
        """Send an event once, with the headers of a trace."""
        now_ms = self._store.clock.now_ms()
        secrets = [endpoint.secret, *([endpoint.old_secret] if endpoint.old_secret_until_ms > now_ms else [])]
        payload = event.payload()
        headers = {**signed(payload, event_id=event.id, at=self._store.clock.now(), by=secrets), **trace}
        return await self._sender.send(endpoint.url, headers=headers, body=payload, tenant=endpoint.tenant)

    async def _drop(self, endpoint: WebhookEndpoint) -> None:
        if dropped := await self._store.drop(endpoint.id):
            self._metrics.webhook_expired.inc(dropped)
            logger.warning(
                "webhooks: %d events for endpoint %s of tenant %s are dropped, because it has been disabled "
                "for 30 days",
                dropped,
                endpoint.id,
                endpoint.tenant,
            )

    async def _settle(self, endpoint: WebhookEndpoint, claimed: Claimed, sent: Sent) -> None:
        """Record how a delivery went, once Redis answers."""
        settle = partial(self._store.settle, endpoint.id, claimed)
        if not sent.accepted:
            settle = partial(
                settle,
                failure=sent.failure,
                retry_ms=self._retry_ms(claimed.tried),
                disable_after_ms=0 if sent.gone else DISABLE_AFTER_S * 1000,
            )
        while True:
            try:
                settled = await settle()
            except (ServiceUnreachableError, ServiceRefusedError):
                await asyncio.sleep(POLL_S)
            else:
                break
        if settled is not Settled.PAST:
            self._count(claimed, sent, settled)
            if not sent.accepted:
                _log(endpoint, claimed, sent, settled)

    def _count(self, claimed: Claimed, sent: Sent, settled: Settled) -> None:
        if sent.accepted:
            self._metrics.webhook_accepted.inc()
            return
        self._metrics.webhook_failed.inc()
        if _given_up(claimed):
            self._metrics.webhook_given_up.inc()
        if settled is Settled.DISABLED:
            self._metrics.webhook_disabled.inc()

    def _retry_ms(self, tried: int) -> int | None:
        if tried >= len(RETRY_AFTER_S):
            return None
        pause_s = RETRY_AFTER_S[tried] * (1 + random.uniform(0, JITTER))  # noqa: S311 - no secret
        return self._store.clock.now_ms() + int(pause_s * 1000)


def _given_up(claimed: Claimed) -> bool:
    """Return whether a failure of an event was its last."""
    return claimed.tried >= len(RETRY_AFTER_S)


def _log(endpoint: WebhookEndpoint, claimed: Claimed, sent: Sent, settled: Settled) -> None:
    of = f"endpoint {endpoint.id} of tenant {endpoint.tenant}"
    logger.info("webhooks: event %s is not accepted by %s: %s", claimed.event.id, of, sent.failure)
    if _given_up(claimed):
        logger.error("webhooks: event %s for %s is given up: %s", claimed.event.id, of, sent.failure)
    if settled is Settled.DISABLED:
        why = "wants no more events" if sent.gone else "has accepted nothing for three days"
        logger.error("webhooks: %s is disabled, because it %s: %s", of, why, sent.failure)
