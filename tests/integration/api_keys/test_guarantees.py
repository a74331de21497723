"""API keys with a guarantee: beyond it, jobs wait behind those of others."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.api_keys.conftest import Enter, Keys
from tests.integration.conftest import PATIENCE_S, StartGateway, StartWorker, chat, eventually

from inferfleet.producer import Fleet
from inferfleet.schemas.names import guarantee_key
from inferfleet.schemas.result import JobRecord
from inferfleet.wire.redis import process_scripts, shared_limits
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.shared_limits import SharedLimits


async def test_jobs_beyond_the_guarantee_of_their_key_do_not_keep_others_waiting(
    start_gateway: StartGateway,
    start_worker: StartWorker,
    keys: Keys,
    enter: Enter,
    pool: str,
    fleet: Fleet,
) -> None:
    """They are accepted, and run when nothing else waits. A guarantee is shared by all gateways."""
    await fleet.declare_pool(pool)
    # Each job counts as about 220 tokens, and the first two exceed what an hour provides.
    heavy = keys.create(f"{pool}.heavy", guaranteed_tokens_per_minute=4)
    light = keys.create(f"{pool}.light", guaranteed_tokens_per_minute=100_000)
    gateways = [await start_gateway(api_keys_file=keys.path) for _ in range(2)]

    async def submit(key: str, number: int, **options: Any) -> JobRecord:
        job = {"body": chat(max_tokens=200), "pool": pool, **options}
        answer = await enter(gateways[number % 2].url, key).post("/v1/jobs", json=job)
        assert answer.status_code == 202
        return await fleet.get(answer.json()["id"])

    flood = [await submit(heavy, number) for number in range(20)]
    assert [job.priority for job in flood] == [4] + [3] * 19
    assert (await submit(heavy, 0, priority="high")).priority == 6
    assert (await submit(heavy, 0, priority="batch")).priority == 1
    others = [await submit(light, number) for number in range(10)]
    assert {job.priority for job in others} == {4}
    await start_worker(max_running=1, look_ahead=0)

    ids = [job.id for job in [*flood, *others]]
    order = [result.job_id async for result in fleet.as_completed(ids, timeout_s=PATIENCE_S)]

    expected = [job.id for job in [*flood[:1], *others, *flood[1:]]]
    assert order == expected


@pytest.mark.store
async def test_a_guarantee_is_a_rate_with_a_small_burst(
    pipeline: CommandPipeline, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token takes a second, and 25 of them may be used at once."""
    monkeypatch.setattr(shared_limits, "BURST_S", 25.0)
    limits = [SharedLimits(pipeline, ttl_s=60) for _ in range(2)]

    async def take(amount: int, number: int = 0) -> bool:
        return await limits[number].guaranteed(pool, amount, per_minute=60)

    assert [await take(10, number % 2) for number in range(4)] == [True, True, True, False]
    other = f"{pool}.other"
    # A job may exceed what is left, but then the next ones wait for it.
    assert await limits[0].guaranteed(other, 3600, per_minute=60)
    assert not await limits[0].guaranteed(other, 1, per_minute=60)


@pytest.mark.store
async def test_a_job_whose_reply_was_lost_takes_its_guarantee_once(
    pipeline: CommandPipeline, pool: str
) -> None:
    async def take(number: int) -> int:
        command = process_scripts.guarantee(
            guarantee_key(pool), caller="c", number=number, cost_ms=10_000, burst_ms=15_000, ttl_s=60
        )
        return int(await pipeline.execute(*command))

    assert [await take(0), await take(0), await take(0)] == [1, 1, 1]
    assert [await take(1), await take(1), await take(0)] == [1, 1, 0]
    assert [await take(2), await take(2)] == [0, 0]


@pytest.mark.store
async def test_a_guarantee_is_not_lost_until_a_clock_that_was_set_back_has_caught_up(
    pipeline: CommandPipeline, pool: str
) -> None:
    limits = SharedLimits(pipeline, ttl_s=60)
    # A token takes a tenth of a second, so the second job has to wait for one.
    assert await limits.guaranteed(pool, 21, per_minute=600)
    assert not await limits.guaranteed(pool, 1, per_minute=600)
    stored = await pipeline.execute("HMGET", guarantee_key(pool), "used_until", "at")
    for name, at_ms in zip(("used_until", "at"), stored, strict=True):
        await pipeline.execute("HSET", guarantee_key(pool), name, float(at_ms or 0) + 3_600_000)

    async def fits() -> bool:
        return await limits.guaranteed(pool, 1, per_minute=600)

    await eventually(fits)
