"""Webhooks tell of rollouts that are promoted or aborted."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from tests.integration.conftest import PATIENCE_S, StartGateway, eventually
from tests.integration.receiver import Receiver, receiving

from inferfleet.producer import Fleet, rollout_control
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas.job import DEFAULT_TENANT
from inferfleet.schemas.rollout import RolloutPhase
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.webhooks import WebhookStore

EVENTS = ["rollout.aborted", "rollout.promoted"]


@pytest.fixture
async def receiver(start_gateway: StartGateway, pipeline: CommandPipeline) -> AsyncIterator[Receiver]:
    """An endpoint at two gateways, both of which control rollouts."""
    gateway, _ = [await start_gateway(webhook_networks=["127.0.0.0/8"]) for _ in range(2)]
    async with receiving() as receiver, httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        endpoint = {"name": "rollouts", "url": receiver.url, "event_types": EVENTS}
        added = await http.post("/v1/webhook_endpoints", json=endpoint)
        assert added.status_code == 200, added.text
        yield receiver
    await WebhookStore(pipeline).remove(DEFAULT_TENANT, added.json()["id"])


async def test_each_promotion_and_each_abort_is_told_once_with_an_id_of_its_own(
    fleet: Fleet, receiver: Receiver, pool: str, canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_control, "SETTLE_S", 0.0)
    monkeypatch.setattr(rollout_control, "LOOK_S", 0.1)
    rollouts = Rollouts(fleet)

    async def over() -> bool:
        rollout = (await rollouts.read(pool)).rollout
        return rollout is not None and rollout.phase is RolloutPhase.ABORTED

    await rollouts.start(pool, to=canary, steps=[100], interval_s=3600)
    promoted = await rollouts.promote(pool)
    await receiver.take(1)
    aborted = await rollouts.abort(pool, reason="by hand")
    await receiver.take(2)
    await eventually(over)
    await rollouts.start(pool, to=canary, steps=[100], interval_s=3600)
    again = await rollouts.abort(pool, reason="by hand")
    await receiver.take(3)
    await eventually(over)

    assert [each.event for each in receiver.received] == [
        {
            "id": f"evt_rollout.{became}_{pool}_{int(rollout.since.timestamp())}",
            "type": f"rollout.{became}",
            "created_at": int(rollout.since.timestamp()),
            "data": {"id": pool},
        }
        for became, rollout in (("promoted", promoted), ("aborted", aborted), ("aborted", again))
    ]
