"""What all routes of a gateway share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from inferfleet.agents.runs import AgentRuns
from inferfleet.agents.tenant_runs import TenantRuns
from inferfleet.gateway.admission import Admission
from inferfleet.gateway.api_keys import ApiKey, KeyRing
from inferfleet.gateway.batches.files import Files
from inferfleet.gateway.callers import caller_of
from inferfleet.gateway.metrics import GatewayMetrics
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.gateway.ui.fleet_view import FleetView
from inferfleet.gateway.webhooks.kinds import RESPONSE
from inferfleet.gateway.webhooks.webhooks import Webhooks
from inferfleet.producer import Fleet
from inferfleet.producer.openai.api import OpenAIApi
from inferfleet.producer.openai.conversations import ConversationsApi
from inferfleet.producer.openai.responses import ResponsesApi
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.wire.redis.batches import BatchRecords
from inferfleet.wire.redis.shared_limits import SharedLimits


class Shutdown:
    """The end of a gateway, in two steps.

    First it drains: it accepts nothing new, and ends what a client can resume elsewhere. Then it is ``over``:
    it ends all that is left.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        # Futures, because a request that waits for one needs no task of its own.
        self.draining: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()

    def drain(self, *, timeout_s: float) -> None:
        """Drain, and be over after ``timeout_s``."""
        _set(self.draining)
        asyncio.get_running_loop().call_later(timeout_s, _set, self.over)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway's parts. All that a caller can do goes through ``fleet_of`` and ``api_of`` its request."""

    settings: GatewaySettings
    trusted_fleet: Fleet
    """Sees the jobs and sessions of all tenants. No route may use it for what a caller asks, but the web
    page's about the whole fleet, which nobody with a key gets."""
    trusted_api: OpenAIApi
    webhooks: Webhooks
    metrics: GatewayMetrics
    limits: SharedLimits
    batches: BatchRecords
    files: Files | None
    """``None`` if the gateway has no storage for files."""
    keys: KeyRing | None = None
    """The API keys. Without them, anybody is the tenant ``default``."""
    fleet_view: FleetView | None = None
    """What the web page shows of the fleet; ``None`` if there is no web page."""
    new_batch: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there may be a batch that nobody runs."""
    shutdown: Shutdown = field(default_factory=Shutdown)

    def fleet_of(self, request: Request) -> TenantFleet:
        """Return the fleet as the caller of a request sees it."""
        caller = caller_of(request)
        return TenantFleet(self.trusted_fleet, caller.tenant, policy=self.admission_of(caller.key))

    def admission_of(self, key: ApiKey | None) -> Admission | None:
        """Return what decides what the bearer of an API key may submit, if there is a key."""
        if key is None:
            return None
        metrics = self.metrics
        return Admission(key, self.limits, limited=metrics.limited, demoted=metrics.demoted.inc)

    def api_of(self, request: Request) -> OpenAIApi:
        """Return what answers the caller of a request."""
        return self.trusted_api.of(self.fleet_of(request), pools=caller_of(request).pools)

    def responses_of(self, request: Request) -> ResponsesApi:
        """Return what answers the caller of a request to the Responses API."""
        fleet = self.fleet_of(request)

        async def watch(job_id: str) -> None:
            await self.webhooks.watch(fleet.tenant, [job_id], kind=RESPONSE)

        return ResponsesApi(fleet, self.api_of(request), accepted=watch)

    def runs_of(self, request: Request) -> TenantRuns:
        """Return the runs of agents as the caller of a request sees them."""
        return TenantRuns(AgentRuns(self.trusted_fleet), caller_of(request).tenant)

    def conversations_of(self, request: Request) -> ConversationsApi:
        """Return what answers the caller of a request to the Conversations API."""
        return ConversationsApi(self.fleet_of(request))


def _set(step: asyncio.Future[Any]) -> None:
    if not step.done():
        step.set_result(None)
