"""The door of webhooks for routes: which jobs are watched, and events of what is no job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Final

from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.gateway.webhooks.delivery import Delivery
from inferfleet.gateway.webhooks.delivery_spans import DeliverySpans
from inferfleet.gateway.webhooks.kinds import JOB
from inferfleet.gateway.webhooks.sending import Sender
from inferfleet.producer.background import background
from inferfleet.schemas.errors import PublishUnconfirmedError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.job import DEFAULT_TENANT
from inferfleet.schemas.rollout import Rollout, RolloutPhase
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.home import Home
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.connection import command_pipeline, open_store
from inferfleet.wire.redis.replicas import Replicas
from inferfleet.wire.redis.webhooks import WEBHOOKS, WatchedJob, WebhookStore
from inferfleet.wire.tasks import cancel_and_wait

LAST_S: Final = 5.0
"""How long a gateway that shuts down waits at most for endpoints after its own drain. It waits longer if
requests may take longer, and the drain, too."""


class Webhooks:
    """Webhooks of all tenants."""

    def __init__(self, store: WebhookStore, sender: Sender, delivery: Delivery, replicas: Replicas) -> None:
        self.store = store
        self.sender = sender
        self.delivery = delivery
        self._replicas = replicas

    @classmethod
    @asynccontextmanager
    async def running(cls, settings: GatewaySettings, metrics: GatewayMetrics) -> AsyncGenerator[Webhooks]:
        """Deliver webhooks while the block runs, on a connection of their own.

        Raises:
            ServiceUnreachableError: Redis has not answered for ``patience_s``.
            ServiceRefusedError: Redis refuses a right that is needed.

        """
        clock, home = RedisClock(), Home()
        async with (
            open_store(
                settings.redis_url,
                access=replace(WEBHOOKS, waits=settings.redis_wait_replicas > 0),
                clock=clock,
                patience_s=settings.patience_s,
                allow_eviction=settings.allow_eviction,
            ) as client,
            Sender.opened(allowed=settings.webhook_networks, timeout_s=settings.webhook_timeout_s) as sender,
        ):
            pipeline = command_pipeline(client, patience_s=settings.patience_s, clock=clock, home=home)
            store = WebhookStore(pipeline)
            replicas = Replicas(pipeline, settings, patience_s=settings.patience_s)
            delivery = Delivery(
                store,
                sender,
                metrics,
                timeout_s=settings.webhook_timeout_s,
                max_undelivered=settings.webhook_max_undelivered,
                spans=DeliverySpans(store) if settings.tracing else None,
            )
            async with background(pipeline.run()):
                delivering = asyncio.create_task(delivery.run())
                try:
                    yield cls(store, sender, delivery, replicas)
                finally:
                    delivery.stop()
                    drain_s = settings.drain_timeout_s
                    rest_s = min(settings.webhook_timeout_s, drain_s) - delivery.stops_for_s
                    await asyncio.wait([delivering], timeout=max(min(LAST_S, drain_s), rest_s))
                    await cancel_and_wait(delivering)
                    await delivery.give_back()
                    home.close()

    async def watch(self, tenant: str, job_ids: Sequence[str], *, kind: str = JOB) -> None:
        """Tell a tenant's endpoints when jobs end. Call it once they are accepted, before the client knows.

        ``kind`` is one of ``kinds.KINDS``. Without an endpoint this does nothing.

        Raises:
            PublishUnconfirmedError: Redis does not answer: the jobs run, but their ends may not be told.

        """
        if not job_ids:
            return
        jobs = [WatchedJob(kind, job_id, tenant) for job_id in job_ids]
        try:
            if await self._replicas.hold(lambda: self.store.watch(jobs)):
                self.delivery.note(jobs)
        except (ServiceUnreachableError, ServiceRefusedError) as error:
            raise PublishUnconfirmedError(
                f"webhooks may not be sent for the ends of {len(jobs)} accepted jobs ({error}): submit "
                "them again with the same idempotency keys"
            ) from error

    async def tell(self, tenant: str, event_type: str, object_id: str, at: datetime) -> None:
        """Tell a tenant's endpoints that something has ended which is no job, such as a batch.

        Repeat it until it succeeds: an event that still has to be delivered is not entered twice.

        Raises:
            ServiceUnreachableError, ServiceRefusedError: Redis does not take it.

        """
        event = WebhookEvent(event_type, object_id, int(at.timestamp()))
        await self._replicas.hold(lambda: self.delivery.tell(tenant, event))

    async def tell_rollout(self, rollout: Rollout) -> None:
        """Tell the endpoints of the tenant ``default`` that a rollout was promoted, or is being aborted.

        This waits for no replica: the rollout itself, which says whether it was told, does not either. So an
        event that Redis took is not repeated because a replica is missing.

        Raises:
            ServiceUnreachableError, ServiceRefusedError: Redis does not take it.

        """
        became = "promoted" if rollout.phase is RolloutPhase.PROMOTED else "aborted"
        event = WebhookEvent(f"rollout.{became}", rollout.pool, int(rollout.since.timestamp()))
        await self.delivery.tell(DEFAULT_TENANT, event)
