"""What somebody else has changed back before Redis gets the command that changed it a second time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import PATIENCE_S, Connect, eventually
from tests.integration.test_model_swap import identity

from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas.names import pool_key, rollout_key
from inferfleet.schemas.rollout import RolloutPhase
from inferfleet.wire.redis.script import SCRIPTS

Act = Callable[[Fleet, str], Awaitable[Any]]

PAUSE: Act = lambda fleet, pool: fleet.pause_pool(pool)  # noqa: E731
RESUME: Act = lambda fleet, pool: fleet.resume_pool(pool)  # noqa: E731
REQUIRE: Act = lambda fleet, pool: fleet.require_identity(pool, identity(7))  # noqa: E731
ACCEPT: Act = lambda fleet, pool: fleet.require_identity(pool, None)  # noqa: E731


@pytest.mark.parametrize(
    ("field", "change", "back", "answers"),
    [
        pytest.param("paused", PAUSE, RESUME, None, id="pause"),
        pytest.param("paused", RESUME, PAUSE, True, id="resume"),
        pytest.param("required_identity", REQUIRE, ACCEPT, None, id="require"),
        pytest.param("required_identity", ACCEPT, REQUIRE, None, id="accept"),
    ],
)
async def test_a_change_of_a_pool_is_not_made_again(
    connect: Connect,
    services: Services,
    fleet: Fleet,
    store: aioredis.Redis,
    pool: str,
    field: str,
    change: Act,
    back: Act,
    answers: bool | None,
) -> None:
    await fleet.declare_pool(pool)
    await back(fleet, pool)
    before = await store.hexists(pool_key(pool), field)

    async def changed() -> bool:
        return bool(await store.hexists(pool_key(pool), field)) is not before

    async with Proxy(services.redis_url) as link, connect(redis_url=link.url) as unlucky:
        link.hold_answers_to(SCRIPTS["pool_change"].sha.encode())
        changing = asyncio.ensure_future(change(unlucky, pool))
        await eventually(changed)
        await link.until_held(Direction.TO_CLIENT)
        await back(fleet, pool)
        link.reset()
        link.heal()
        assert await asyncio.wait_for(changing, PATIENCE_S) is answers

    assert await store.hexists(pool_key(pool), field) is before


async def test_a_change_of_a_rollout_is_not_made_again(
    connect: Connect, services: Services, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    canary = f"{pool}-v2"
    for name in (pool, canary):
        await fleet.declare_pool(name)
    rollouts = Rollouts(fleet)
    await rollouts.start(pool, to=canary, steps=[50, 100], interval_s=3600, allow_no_workers=True)

    async def phase() -> RolloutPhase:
        rollout = (await rollouts.read(pool)).rollout
        assert rollout is not None
        return rollout.phase

    async def paused() -> bool:
        return await phase() is RolloutPhase.PAUSED

    async with Proxy(services.redis_url) as link, connect(redis_url=link.url) as unlucky:
        link.hold_answers_to(b'"phase":"paused"')
        pausing = asyncio.create_task(Rollouts(unlucky).pause(pool))
        await eventually(paused)
        await link.until_held(Direction.TO_CLIENT)
        await rollouts.resume(pool)
        link.reset()
        link.heal()
        assert (await asyncio.wait_for(pausing, PATIENCE_S)).phase is RolloutPhase.PAUSED

    assert await phase() is RolloutPhase.RUNNING
    await store.delete(pool_key(pool), rollout_key(pool))
