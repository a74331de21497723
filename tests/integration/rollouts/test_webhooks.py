"""Webhooks tell of rollouts that are promoted or aborted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest
from tests.integration.conftest import PATIENCE_S, RunningGateway, StartGateway, chat, eventually
from tests.integration.receiver import Receiver, receiving
from tests.integration.rollouts.conftest import until_followed

from inferfleet.producer import Fleet, rollout_control
from inferfleet.producer.background import background
from inferfleet.producer.rollout_control import RolloutController
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas import Job
from inferfleet.schemas.errors import ServiceRefusedError
from inferfleet.schemas.job import DEFAULT_TENANT
from inferfleet.schemas.rollout import Rollout, RolloutPhase, RolloutRule
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pools import note_pool
from inferfleet.wire.redis.rollouts import change_rollout, read_rollout
from inferfleet.wire.redis.webhooks import WebhookStore

EVENTS = ["rollout.aborted", "rollout.promoted"]


@pytest.fixture
async def receiver(start_gateway: StartGateway, pipeline: CommandPipeline) -> AsyncIterator[Receiver]:
    """An endpoint at two gateways, both of which control rollouts."""
    gateway, _ = [await start_gateway(webhook_networks=["127.0.0.0/8"]) for _ in range(2)]
    async with receives(gateway, pipeline) as receiver:
        yield receiver


@asynccontextmanager
async def receives(gateway: RunningGateway, pipeline: CommandPipeline) -> AsyncGenerator[Receiver]:
    """An endpoint for the events of rollouts."""
    async with receiving() as receiver, httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        endpoint = {"name": "rollouts", "url": receiver.url, "event_types": EVENTS}
        added = await http.post("/v1/webhook_endpoints", json=endpoint)
        assert added.status_code == 200, added.text
        yield receiver
    await WebhookStore(pipeline).remove(DEFAULT_TENANT, added.json()["id"])


async def until_aborted(fleet: Fleet, pool: str) -> None:
    async def over() -> bool:
        rollout = (await Rollouts(fleet).read(pool)).rollout
        return rollout is not None and rollout.phase is RolloutPhase.ABORTED

    await eventually(over)


async def test_each_promotion_and_each_abort_is_told_once_with_an_id_of_its_own(
    fleet: Fleet, receiver: Receiver, pool: str, canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_control, "SETTLE_S", 0.0)
    monkeypatch.setattr(rollout_control, "LOOK_S", 0.1)
    rollouts = Rollouts(fleet)
    await rollouts.start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    promoted = await rollouts.promote(pool, allow_no_workers=True)
    await receiver.take(1)
    aborted = await rollouts.abort(pool, reason="by hand")
    await receiver.take(2)
    await until_aborted(fleet, pool)
    await rollouts.start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    again = await rollouts.abort(pool, reason="by hand")
    await receiver.take(3)
    await until_aborted(fleet, pool)

    assert [each.event for each in receiver.received] == [
        {
            "id": f"evt_rollout.{became}_{pool}_{int(rollout.since.timestamp())}",
            "type": f"rollout.{became}",
            "created_at": int(rollout.since.timestamp()),
            "data": {"id": pool},
        }
        for became, rollout in (("promoted", promoted), ("aborted", aborted), ("aborted", again))
    ]


async def test_an_abort_does_not_wait_for_a_replica_that_is_missing_and_is_told_once(
    start_gateway: StartGateway,
    fleet: Fleet,
    pipeline: CommandPipeline,
    pool: str,
    canary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout_control, "SETTLE_S", 0.0)
    monkeypatch.setattr(rollout_control, "LOOK_S", 0.1)
    demanding = {"redis_wait_replicas": 1, "redis_wait_timeout_ms": 10}
    gateway = await start_gateway(webhook_networks=["127.0.0.0/8"], **demanding)
    async with receives(gateway, pipeline) as receiver:
        await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
        await Rollouts(fleet).abort(pool, reason="by hand")
        await until_aborted(fleet, pool)
        await receiver.take(1)
        await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
        await Rollouts(fleet).promote(pool, allow_no_workers=True)
        await receiver.take(2)
    assert [each.event["type"] for each in receiver.received] == EVENTS


async def test_jobs_move_back_although_nobody_can_be_told_and_the_abort_ends_when_somebody_is(
    fleet: Fleet,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout_control, "SETTLE_S", 0.0)
    monkeypatch.setattr(rollout_control, "LOOK_S", 0.1)
    listens = asyncio.Event()
    told: list[RolloutPhase] = []

    async def tell(rollout: Rollout) -> None:
        if not listens.is_set():
            raise ServiceRefusedError("nobody listens")
        told.append(rollout.phase)

    async def moved() -> bool:
        return (await fleet.pool(pool)).ready == 1

    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    await until_followed(fleet, pool, RolloutRule(to=canary, weight=100))
    await fleet.submit(Job(pool=pool, body=chat()))
    await Rollouts(fleet).abort(pool, reason="by hand")
    async with background(RolloutController(fleet, producer_settings(), tell=tell).run()):
        await eventually(moved)
        listens.set()
        await until_aborted(fleet, pool)
    assert told == [RolloutPhase.ABORTING]


async def test_a_promotion_is_told_in_the_look_that_makes_it(
    fleet: Fleet,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rollout may be finished before the next look."""
    monkeypatch.setattr(rollout_control, "LOOK_S", 10 * PATIENCE_S)
    told: asyncio.Future[RolloutPhase] = asyncio.get_running_loop().create_future()

    async def tell(rollout: Rollout) -> None:
        told.set_result(rollout.phase)

    def promote(rollout: Rollout, *, now: datetime, **_: Any) -> Rollout:
        return rollout.in_phase(RolloutPhase.PROMOTED, now=now)

    monkeypatch.setattr(rollout_control, "next_of", promote)
    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    async with background(RolloutController(fleet, producer_settings(), tell=tell).run()):
        async with asyncio.timeout(PATIENCE_S):
            assert await told is RolloutPhase.PROMOTED


async def test_a_promotion_of_long_ago_is_no_news(
    fleet: Fleet,
    pipeline: CommandPipeline,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
    canary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Versions that told nobody left them as if they had still to be told."""
    monkeypatch.setattr(rollout_control, "SETTLE_S", 0.0)
    monkeypatch.setattr(rollout_control, "LOOK_S", 0.1)
    told: list[RolloutPhase] = []

    async def tell(rollout: Rollout) -> None:
        told.append(rollout.phase)

    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    promoted = await Rollouts(fleet).promote(pool, allow_no_workers=True)
    kept = await read_rollout(pipeline, pool)
    old = promoted.model_copy(update={"since": promoted.since - timedelta(hours=2)})
    assert await change_rollout(pipeline, old, revision=kept.revision)

    looks = 0

    async def counted(*args: Any) -> None:
        nonlocal looks
        looks += 1
        await note_pool(*args)

    async def looked_twice() -> bool:
        return looks > 2

    monkeypatch.setattr("inferfleet.producer.rollout_control.note_pool", counted)
    async with background(RolloutController(fleet, producer_settings(), tell=tell).run()):
        await eventually(looked_twice)
        await Rollouts(fleet).abort(pool, reason="by hand")
        await until_aborted(fleet, pool)
    assert told == [RolloutPhase.ABORTING]
