"""Tenants share a pool by what they have been served lately: jobs of those who had less are preferred."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import aiohttp
import pytest
import redis.asyncio as aioredis
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.api_keys.conftest import Enter, Keys
from tests.integration.api_keys.conftest import enter as enter
from tests.integration.api_keys.conftest import keys as keys
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    slow_chat,
    until_running,
)

from inferfleet.exporter import metrics
from inferfleet.exporter.server import serving
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import PartialSubmitError, QueueFullError, UnknownPoolError
from inferfleet.schemas.job import Job
from inferfleet.schemas.names import preferred_key, shares_key
from inferfleet.schemas.shares import fairness, service_of, times_its_share
from inferfleet.wire.redis import shares
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_reading import JobReading
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.script import SCRIPTS
from inferfleet.wire.redis.shares import PoolShares, Served, add_served, read_shares

ONE_SLOT = 2
"""How many jobs of a tenant are preferred at once with one slot."""


@pytest.fixture(autouse=True)
def one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pool without workers have one slot."""
    monkeypatch.setattr(shares, "SLOTS", 1)


async def serve(pipeline: CommandPipeline, pool: str, **services: int) -> None:
    """Count a job of each of these services, by tenant."""
    for number, (tenant, service) in enumerate(services.items()):
        worker = f"w-{tenant}-{service}"
        await add_served(pipeline, pool, worker, Served(number, tenant, service, [tenant]), ttl_s=60)


@pytest.mark.parametrize("fair", [True, False])
async def test_a_tenant_with_many_jobs_does_not_keep_another_one_waiting(
    connect: Connect, start_worker: StartWorker, pool: str, fair: bool
) -> None:
    async with connect(fair_shares=fair) as fleet:
        await fleet.declare_pool(pool)
        heavy = [await fleet.submit(chat(), pool=pool, tenant="heavy") for _ in range(15)]
        light = [await fleet.submit(chat(), pool=pool, tenant="light") for _ in range(ONE_SLOT)]
        await start_worker(max_running=1, look_ahead=0, fair_shares=fair)
        jobs = [*heavy, *light]
        order = [result.job_id async for result in fleet.as_completed(jobs, timeout_s=PATIENCE_S)]
        before = [*heavy[:ONE_SLOT], *light, *heavy[ONE_SLOT:]] if fair else jobs
        assert order == [job.id for job in before]
        assert [job.priority for job in heavy[: ONE_SLOT + 1]] == ([5, 5, 4] if fair else [4, 4, 4])
        assert {(await fleet.get(job)).priority for job in light} == {5 if fair else 4}


async def test_what_was_served_counts_when_jobs_have_ended(
    connect: Connect,
    start_worker: StartWorker,
    pipeline: CommandPipeline,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if their answers were longer than those of others. Their places are free then."""
    # So that nothing decays.
    monkeypatch.setattr(shares, "HALF_LIFE_S", 1e6)
    async with connect(fair_shares=True) as fleet:
        await fleet.declare_pool(pool)
        await start_worker(max_running=4, fair_shares=True)
        long = [await fleet.submit(chat(simulated={"tokens": 40}), pool=pool, tenant="long")]
        long += [await fleet.submit(chat(simulated={"tokens": 40}), pool=pool, tenant="long")]
        short = await fleet.submit(chat(simulated={"tokens": 20}), pool=pool, tenant="short")
        results = await fleet.wait_many([*long, short], timeout_s=PATIENCE_S)
        of_long, of_short = (
            sum(service_of(result.usage) for result in results[:2]),
            service_of(results[2].usage),
        )

        async def are_added() -> bool:
            added = {share.tenant: share for share in await read_shares(pipeline, pool)}
            return all(added[name].per_weight == added[name].tokens for name in ("long", "short")) and (
                added["long"].tokens == pytest.approx(of_long)
                and added["short"].tokens == pytest.approx(of_short)
            )

        await eventually(are_added)
        assert (
            await pipeline.execute("EXISTS", preferred_key(pool, "long"), preferred_key(pool, "short")) == 0
        )
        assert (await fleet.submit(chat(), pool=pool, tenant="long")).priority == 4
        assert (await fleet.submit(chat(), pool=pool, tenant="short")).priority == 5


@pytest.mark.store
async def test_who_was_served_less_than_the_mean_of_those_that_compete_is_preferred(
    pipeline: CommandPipeline, pool: str
) -> None:
    placing = PoolShares(pipeline, ttl_s=60)
    assert await placing.place(pool, "none", "alone")
    await serve(pipeline, pool, a=900, b=1500, c=3000, idle=1)

    # The mean of a, b and c is 1,800. With the one that is nearly idle it would be less than 1,500.
    assert await placing.place(pool, "b", "b-1")
    assert not await placing.place(pool, "c", "c-1")
    assert await placing.place(pool, "idle", "idle-1")
    assert not await placing.place(pool, "c", "c-2", weight=1.2)
    assert await placing.place(pool, "c", "c-3", weight=2)


@pytest.mark.store
async def test_service_decays_by_the_clock_of_redis(
    pipeline: CommandPipeline, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve(pipeline, pool, busy=1000, other=200)
    placing = PoolShares(pipeline, ttl_s=60)
    monkeypatch.setattr(placing._pipeline.clock, "now_ms", lambda: 0)  # pyright: ignore[reportPrivateUsage]
    assert not await placing.place(pool, "busy", "now")

    monkeypatch.setattr(shares, "HALF_LIFE_S", 0.001)

    async def is_preferred() -> bool:
        return await placing.place(pool, "busy", "later")

    await eventually(is_preferred)


@pytest.mark.store
async def test_no_more_jobs_of_a_tenant_are_preferred_than_its_weight_allows_whoever_submits_them(
    pipeline: CommandPipeline, pool: str
) -> None:
    submitters = [PoolShares(pipeline, ttl_s=60) for _ in range(3)]

    placed = await asyncio.gather(
        *(submitters[number % 3].place(pool, "t", f"job-{number}", weight=2.5) for number in range(30))
    )

    assert sum(placed) == ONE_SLOT * 2.5
    assert await pipeline.execute("ZCARD", preferred_key(pool, "t")) == sum(placed)


@pytest.mark.store
async def test_a_command_that_is_sent_twice_counts_once(pipeline: CommandPipeline, pool: str) -> None:
    placing = PoolShares(pipeline, ttl_s=60)
    assert [await placing.place(pool, "t", "one") for _ in range(5)] == [True] * 5
    assert await placing.place(pool, "t", "two")
    assert not await placing.place(pool, "t", "three")

    async def add(number: int) -> list[bytes]:
        served = Served(number, "t", 100, ["one"] if number == 7 else [])
        await add_served(pipeline, pool, "worker", served, ttl_s=60)
        text: bytes = await pipeline.execute("HGET", shares_key(pool), "t")
        return text.split()

    once = await add(7)
    assert once[:4] == [b"100.000", b"1.000000", b"1", b"1.000"]
    assert await add(7) == once
    later = await add(8)
    assert float(later[0]) > 100
    assert await add(7) == later
    # Another worker counts on its own.
    await add_served(pipeline, pool, "another", Served(7, "t", 100, []), ttl_s=60)
    assert float((await add(8))[0]) > float(later[0])


async def test_a_pool_with_more_slots_prefers_more_jobs(
    connect: Connect, start_worker: StartWorker, pipeline: CommandPipeline, pool: str
) -> None:
    """Also of many jobs that are submitted at once."""
    await start_worker(max_running=3, look_ahead=0, fair_shares=True)

    async def is_ready() -> bool:
        heartbeats = await read_heartbeats(pipeline)
        return any((it.pool, it.phase, it.slots) == (pool, "ready", 3) for it in heartbeats)

    await eventually(is_ready)
    async with connect(fair_shares=True) as fleet:
        held = [slow_chat(tokens=10_000, step_s=0.1) for _ in range(3)]
        for job in await fleet.submit_many(held, pool=pool, priority=9):
            await until_running(fleet, job)
        jobs = await fleet.submit_many([chat() for _ in range(20)], pool=pool)
        assert sorted(job.priority for job in jobs) == [4] * (20 - 3 * ONE_SLOT) + [5] * 3 * ONE_SLOT


@pytest.mark.parametrize("looks", [True, False])
async def test_a_job_that_ended_without_a_worker_gives_its_place_back(
    connect: Connect, pool: str, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    monkeypatch.setattr(shares, "LOOK_AGAIN_S", 0.0 if looks else 1e6)
    async with connect(fair_shares=True) as fleet:
        await fleet.declare_pool(pool)
        jobs = [await fleet.submit(chat(), pool=pool) for _ in range(ONE_SLOT + 1)]
        assert [job.priority for job in jobs] == [5, 5, 4]
        await fleet.cancel(jobs[0])

        assert (await fleet.submit(chat(), pool=pool)).priority == (5 if looks else 4)
        # The one that waits keeps its place.
        assert (await fleet.submit(chat(), pool=pool)).priority == 4


async def test_jobs_that_may_not_start_take_no_place(connect: Connect, pool: str) -> None:
    async with connect(fair_shares=True) as fleet:
        await fleet.declare_pool(pool)
        later = [await fleet.submit(chat(), pool=pool, delay_s=86_400) for _ in range(ONE_SLOT)]
        following = [await fleet.submit(chat(), pool=pool, after=[later[0]]) for _ in range(ONE_SLOT)]
        assert {job.priority for job in (*later, *following)} == {4}
        assert [(await fleet.submit(chat(), pool=pool)).priority for _ in range(ONE_SLOT + 1)] == [5, 5, 4]


async def test_a_job_that_is_refused_gives_its_place_back(
    connect: Connect, store: aioredis.Redis, pool: str
) -> None:
    async with connect(fair_shares=True, queue_max_length=1) as fleet:
        await fleet.declare_pool(pool)
        await fleet.submit(chat(), pool=pool, priority=0)
        with pytest.raises(QueueFullError):
            await fleet.submit(chat(), pool=pool)
        assert await store.zcard(preferred_key(pool, "default")) == 0


@pytest.mark.store
async def test_a_place_that_is_given_back_twice_stays_with_whoever_got_it_meanwhile(
    pipeline: CommandPipeline, pool: str
) -> None:
    placing = PoolShares(pipeline, ttl_s=60)
    assert await placing.place(pool, "t", "one")
    since_ms = await placing.placed_ms(pool, "t", "one")
    assert since_ms is not None
    await placing.give_back(pool, "t", "one", since_ms)
    assert await placing.placed_ms(pool, "t", "one") is None

    async def placed_later() -> bool:
        assert await placing.place(pool, "t", "one")
        return await placing.placed_ms(pool, "t", "one") != since_ms

    await eventually(placed_later)
    await placing.give_back(pool, "t", "one", since_ms)
    assert await placing.placed_ms(pool, "t", "one") is not None


@pytest.mark.store
async def test_a_job_that_is_placed_again_while_others_look_for_its_record_keeps_its_place(
    pipeline: CommandPipeline, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "NEW_MS", -PATIENCE_S * 1000)
    looking, placing = PoolShares(pipeline, ttl_s=60), PoolShares(pipeline, ttl_s=60)
    for job in ("one", "two"):
        assert await looking.place(pool, "t", job)
    since_ms = await placing.placed_ms(pool, "t", "one")

    async def placed_later() -> bool:
        assert await placing.place(pool, "t", "one")
        return await placing.placed_ms(pool, "t", "one") != since_ms

    async def states(_: JobReading, job_ids: Iterable[str]) -> dict[str, None]:
        await eventually(placed_later)
        return dict.fromkeys(job_ids)

    monkeypatch.setattr(JobReading, "states", states)
    assert await looking.place(pool, "t", "three")
    assert await pipeline.execute("ZRANGE", preferred_key(pool, "t"), 0, -1) == [b"one", b"three"]


async def test_a_job_that_is_refused_while_it_is_submitted_again_keeps_its_place(
    connect: Connect, services: Services, store: aioredis.Redis, pool: str
) -> None:
    """Its first caller gives the place back when the second has got it."""
    job = Job(pool=pool, body=chat())
    async with Proxy(services.redis_url) as link, connect(redis_url=link.url, fair_shares=True) as refused:
        link.hold_answers_to(SCRIPTS["discard"].sha.encode())
        submitting = asyncio.create_task(refused.submit(job))
        await link.until_held(Direction.TO_CLIENT)
        async with connect(fair_shares=True) as fleet:
            await fleet.declare_pool(pool)
            assert (await fleet.submit(job)).priority == 5
        link.heal()
        with pytest.raises(UnknownPoolError):
            await asyncio.wait_for(submitting, PATIENCE_S)

    assert await store.zcard(preferred_key(pool, "default")) == 1


async def test_a_job_that_is_submitted_again_with_another_priority_keeps_its_place(
    connect: Connect, store: aioredis.Redis, pool: str
) -> None:
    job = Job(pool=pool, body=chat())
    async with connect(fair_shares=True) as fleet:
        await fleet.declare_pool(pool)
        assert (await fleet.submit(job)).priority == 5
        assert (await fleet.submit(job.model_copy(update={"priority": 7}))).priority == 5
        assert await store.zcard(preferred_key(pool, "default")) == 1


@pytest.mark.parametrize("served", [False, True])
async def test_nothing_is_left_of_a_job_for_an_unknown_pool(
    connect: Connect, store: aioredis.Redis, pipeline: CommandPipeline, pool: str, served: bool
) -> None:
    if served:
        await serve(pipeline, pool, another=1000)
    before = {key async for key in store.scan_iter(match=f"*{pool}*")}
    async with connect(fair_shares=True) as fleet:
        jobs = [Job(pool=pool, body=chat()) for _ in range(2 * ONE_SLOT)]
        with pytest.raises(PartialSubmitError):
            await fleet.submit_many(jobs)
    assert {key async for key in store.scan_iter(match=f"*{pool}*")} == before
    assert [share.tenant for share in await read_shares(pipeline, pool)] == ["another"] * served


async def test_a_job_that_was_recorded_with_another_priority_keeps_it(
    connect: Connect, store: aioredis.Redis, pool: str
) -> None:
    job = Job(pool=pool, body=chat())
    async with connect() as fleet:
        await fleet.declare_pool(pool)
        await fleet.submit(job)
    async with connect(fair_shares=True) as fleet:
        assert (await fleet.submit(job)).priority == 4
        assert await store.zcard(preferred_key(pool, "default")) == 0


@pytest.mark.parametrize(
    ("priority", "becomes"), [(0, 0), (1, 2), (2, 2), (3, 3), (4, 5), (5, 5), (6, 6), (7, 8), (8, 8), (9, 9)]
)
async def test_a_preferred_job_stays_in_its_class(
    connect: Connect, pool: str, priority: int, becomes: int
) -> None:
    async with connect(fair_shares=True) as fleet:
        await fleet.declare_pool(pool)
        assert (await fleet.submit(chat(), pool=pool, priority=priority)).priority == becomes


async def test_a_preferred_job_does_not_preempt(connect: Connect, pool: str) -> None:
    async with connect(fair_shares=True, preempt_from=8) as fleet:
        await fleet.declare_pool(pool)
        assert (await fleet.submit(chat(), pool=pool, priority=7)).priority == 7


async def test_a_job_that_is_submitted_again_counts_once(connect: Connect, pool: str) -> None:
    async with connect(fair_shares=True) as fleet:
        await fleet.declare_pool(pool)
        again: dict[str, Any] = {"pool": pool, "idempotency_key": pool}
        jobs = [await fleet.submit(chat(), **again) for _ in range(ONE_SLOT + 1)]
        assert len({job.id for job in jobs}) == 1
        assert (await fleet.submit(chat(), pool=pool)).priority == 5
        assert (await fleet.submit(chat(), pool=pool)).priority == 4


async def test_turns_that_are_submitted_together_keep_their_order(
    connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    """Also if only some of them are preferred: the first that is not takes longer, and others do not."""
    async with connect(fair_shares=True) as fleet:
        await fleet.declare_pool(pool)
        turns = [Job(pool=pool, body=chat(f"turn {number}"), session_id=pool) for number in range(8)]
        await fleet.submit_many(turns)
        await start_worker(fair_shares=True)
        await fleet.wait_many(turns, timeout_s=PATIENCE_S)
        assert [turn.job_id for turn in await fleet.session(pool).turns()] == [turn.id for turn in turns]


async def test_gateways_share_by_the_weights_of_keys_and_say_who_is_over_its_share(
    start_gateway: StartGateway,
    start_worker: StartWorker,
    keys: Keys,
    enter: Enter,
    pool: str,
    fleet: Fleet,
    pipeline: CommandPipeline,
) -> None:
    await start_worker(max_running=1, look_ahead=0, fair_shares=True)
    blocking = await fleet.submit(slow_chat(tokens=10_000, step_s=0.1), pool=pool, priority=9)
    await until_running(fleet, blocking)
    heavy, light = keys.create("heavy"), keys.create("light", weight=2)
    gateways = [
        await start_gateway(api_keys_file=keys.path, fair_shares=True, preempt_from=10) for _ in range(2)
    ]

    async def submit(key: str, number: int) -> tuple[str, int]:
        http = enter(gateways[number % 2].url, key)
        answer = await http.post("/v1/jobs", json={"body": chat(), "pool": pool})
        assert answer.status_code == 202
        job_id = answer.json()["id"]
        return job_id, (await fleet.get(job_id)).priority

    of_heavy = [await submit(heavy, number) for number in range(6)]
    of_light = [await submit(light, number) for number in range(6)]
    assert [priority for _, priority in of_heavy] == [5, 5, 4, 4, 4, 4]
    assert [priority for _, priority in of_light] == [5, 5, 5, 5, 4, 4]

    await serve(pipeline, pool, heavy=10_000)
    found = (await enter(gateways[0].url, heavy).get(f"/v1/jobs/{of_heavy[-1][0]}/position")).json()
    assert [wait["reason"] for wait in found["waits"]] == ["queue", "share"]
    assert "times its share of the pool" in found["waits"][1]["detail"]
    found = (await enter(gateways[0].url, light).get(f"/v1/jobs/{of_light[-1][0]}/position")).json()
    assert [wait["reason"] for wait in found["waits"]] == ["queue"]
    found = (await enter(gateways[0].url, heavy).get(f"/v1/jobs/{of_heavy[0][0]}/position")).json()
    assert [wait["reason"] for wait in found["waits"]] == ["queue"]
    await fleet.cancel(blocking)


@pytest.mark.store
@pytest.mark.parametrize("count", [8, 3 * shares.MANY])
async def test_what_python_reads_is_what_the_script_decides_by(
    pipeline: CommandPipeline, pool: str, count: int
) -> None:
    """Also with so many tenants that it does not look at all of them for each job."""
    tenants = {f"t{number}": 10 * number * number for number in range(1, count + 1)}
    await serve(pipeline, pool, **tenants)
    placing = PoolShares(pipeline, ttl_s=60)
    first = await read_shares(pipeline, pool)
    decided: set[bool] = set()
    for tenant in tenants:
        now = await read_shares(pipeline, pool)
        preferred = await placing.place(pool, tenant, tenant)
        # Each preferred job raises the mean, which the script may have computed at any time until now.
        least, most = sorted(times_its_share(tenant, read) or 1.0 for read in (first, now))
        if least > 1.05 or most < 0.95:
            decided.add(preferred)
            assert preferred == (most < 1), tenant
    assert decided == {True, False}
    index = fairness(await read_shares(pipeline, pool))
    assert index is not None
    assert 1 / len(tenants) < index < 1


@pytest.mark.store
async def test_tenants_that_were_served_nothing_for_long_are_forgotten(
    pipeline: CommandPipeline, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve(pipeline, pool, a=1000, b=1000)
    monkeypatch.setattr(shares, "HALF_LIFE_S", 0.001)
    placing = PoolShares(pipeline, ttl_s=60)

    async def are_forgotten() -> bool:
        await placing.place(pool, "c", "c")
        await pipeline.execute("DEL", preferred_key(pool, "c"))
        return [share.tenant for share in await read_shares(pipeline, pool)] == ["c"]

    await eventually(are_forgotten)


@pytest.mark.store
@pytest.mark.parametrize("many", [shares.MANY, 1])
async def test_what_was_served_decays_although_the_clock_of_redis_was_set_back(
    pipeline: CommandPipeline, pool: str, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Also with so many tenants that the script does not look at all of them for each job."""
    monkeypatch.setattr(shares, "MANY", many)
    placing = PoolShares(pipeline, ttl_s=60)
    await serve(pipeline, pool, a=1000, b=1000)
    await placing.place(pool, "c", "c")
    for tenant, stored in (await pipeline.execute("HGETALL", shares_key(pool))).items():
        *rest, at_ms = stored.split()
        in_an_hour = b"%d" % (int(at_ms) + 3_600_000)
        await pipeline.execute("HSET", shares_key(pool), tenant, b" ".join([*rest, in_an_hour]))
    monkeypatch.setattr(shares, "HALF_LIFE_S", 0.001)

    async def are_forgotten() -> bool:
        await placing.place(pool, "c", "c")
        await pipeline.execute("DEL", preferred_key(pool, "c"))
        return [share.tenant for share in await read_shares(pipeline, pool)] == ["c"]

    await eventually(are_forgotten)


async def test_the_exporter_shows_what_tenants_were_served(
    services: Services, pipeline: CommandPipeline, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "HALF_LIFE_S", 1e6)
    monkeypatch.setattr(metrics, "MAX_TENANTS", 2)
    await serve(pipeline, pool, a=3000, b=1000, c=900, d=1)
    settings = ExporterSettings(
        amqp_url=services.amqp_url,
        redis_url=services.redis_url,
        pools=(pool,),
        http_host="127.0.0.1",
        http_port=0,
        sample_interval_s=0.2,
    )
    async with serving(settings) as port, aiohttp.ClientSession() as http:

        async def scraped() -> dict[str, float]:
            async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                families = text_string_to_metric_families(await answer.text())
            return {
                sample.labels.get("tenant", ""): sample.value
                for family in families
                for sample in family.samples
                if sample.labels.get("pool") == pool
                and sample.name in {"inferfleet_pool_attained_tokens", "inferfleet_pool_fairness"}
            }

        async def is_there() -> bool:
            return bool(await scraped())

        await eventually(is_there)
        shown = await scraped()
    assert shown == pytest.approx(
        {"a": 3000, "b": 1000, "other": 901, "": 4900**2 / (3 * (3000**2 + 1000**2 + 900**2))}, rel=0.01
    )
