"""What the tests of rollouts share: a canary pool, and its weight."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Protocol

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import aiormq_channel, chat, eventually

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas import Job
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.names import dead_queue, ended_key, job_queue, pool_key, rollout_key
from inferfleet.schemas.rollout import RolloutRule


@pytest.fixture
async def canary(services: Services, fleet: Fleet, pool: str, store: aioredis.Redis) -> AsyncIterator[str]:
    """The pool with the new version."""
    name = f"{pool}-v2"
    await fleet.declare_pool(name)
    yield name
    for each in (pool, name):
        await store.delete(pool_key(each), rollout_key(each), ended_key(each))
    async with aiormq_channel(services.amqp_url) as channel:
        await channel.queue_delete(job_queue(name))
        await channel.queue_delete(dead_queue(name))


async def until_ready(fleet: Fleet, *pools: str) -> None:
    """Wait until each of the pools has a ready worker."""

    async def ready() -> bool:
        workers = await fleet.workers()
        return set(pools) <= {each.pool for each in workers if each.phase is WorkerPhase.READY}

    await eventually(ready)


class SetWeight(Protocol):
    def __call__(self, weight: float) -> Awaitable[None]: ...


@pytest.fixture
def set_weight(store: aioredis.Redis, fleet: Fleet, pool: str, canary: str) -> SetWeight:
    """Set the canary's weight, and wait until the client ``fleet`` follows it."""

    async def set_weight(weight: float) -> None:
        rule = RolloutRule(to=canary, weight=weight)
        await store.hset(pool_key(pool), "rollout", rule.model_dump_json())
        await until_followed(fleet, pool, rule)

    return set_weight


async def until_followed(fleet: Fleet, pool: str, rule: RolloutRule) -> None:
    """Wait until a client follows a rule, which takes it half a second at most."""
    routing = fleet.submission.routing

    async def followed() -> bool:
        await routing.route(Job(pool=pool, body={}))
        return routing.known(pool) == rule

    await eventually(followed)


def some(pool: str, number: int) -> list[Job]:
    """Different jobs of a pool."""
    return [Job(pool=pool, body=chat(f"{n}")) for n in range(number)]
