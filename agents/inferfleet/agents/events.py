"""Events of runs for webhooks: a runner enters them, and any gateway delivers them."""

from __future__ import annotations

import logging

from inferfleet.agents.metrics import RunnerMetrics
from inferfleet.schemas.run import RunOrder
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.webhooks import Entered, WebhookStore

logger = logging.getLogger(__name__)


class RunEvents:
    """Enters events for the webhook endpoints of a run's tenant, each of which has ``most`` at most."""

    def __init__(self, pipeline: CommandPipeline, *, most: int, metrics: RunnerMetrics) -> None:
        self._store = WebhookStore(pipeline)
        self._most = most
        self._metrics = metrics

    async def tell(self, order: RunOrder, became: str, *, question: str = "") -> None:
        """Tell that a run has become this. Without an endpoint that wants it, this does nothing.

        Raises:
            ServiceUnreachableError, ServiceRefusedError: Redis does not take it; repeat it.

        """
        event = WebhookEvent(f"agent.run.{became}", order.id, self._store.clock.now_ms() // 1000, question)
        entered = await self._store.enter(order.tenant, event, most=self._most)
        for endpoint_id in (endpoint_id for endpoint_id, it in entered.items() if it is Entered.FULL):
            self._metrics.event_dropped()
            logger.warning(
                "event %s is dropped, because webhook endpoint %s has %d undelivered events "
                "(INFERFLEET_WEBHOOK_MAX_UNDELIVERED)",
                event.id,
                endpoint_id,
                self._most,
            )
