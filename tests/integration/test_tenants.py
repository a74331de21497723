"""What a tenant sees of a fleet: its own jobs and sessions, and of those of others, nothing."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import EveryJob, StartWorker, chat

from inferfleet.producer import Fleet, JobFilter
from inferfleet.producer.tenant_fleet import Policy, TenantFleet
from inferfleet.schemas import Job
from inferfleet.schemas.errors import InvalidJobError, JobNotFoundError
from inferfleet.schemas.names import job_key
from inferfleet.schemas.request import check_request
from inferfleet.schemas.result import JobRecord


async def listed(view: TenantFleet, pool: str, **conditions: Any) -> list[JobRecord]:
    page = await view.jobs_page(JobFilter(pool=pool, **conditions), after=None, limit=100)
    assert page.next is None
    return page.jobs


async def test_a_tenant_has_only_its_own_jobs(fleet: Fleet, pool: str) -> None:
    mine, yours = TenantFleet(fleet, f"{pool}.mine"), TenantFleet(fleet, f"{pool}.yours")
    job = await yours.submit(chat(), pool=pool, tenant="default", session_id="talk", idempotency_key="key")

    assert await fleet.tenant_of(job) == yours.tenant
    assert job.session_id == "talk"
    assert await mine.find("key") is None
    assert await listed(mine, pool) == []
    for call in (mine.get, mine.record, mine.wait, mine.cancel, mine.position, mine.check):
        with pytest.raises(JobNotFoundError):
            await call(job.id)
    with pytest.raises(JobNotFoundError):
        await anext(mine.stream(job.id))

    found = await yours.find("key")
    assert found is not None
    assert (found.id, found.session_id, found.tenant) == (job.id, "talk", yours.tenant)
    of_session = await listed(yours, pool, session_id="talk")
    assert [(record.id, record.session_id) for record in of_session] == [(job.id, "talk")]
    assert await yours.cancel(job.id) == "cancelled"


@pytest.mark.parametrize("policy", [None, EveryJob()])
async def test_a_tenants_job_is_checked_once(
    fleet: Fleet, pool: str, monkeypatch: pytest.MonkeyPatch, policy: Policy | None
) -> None:
    checked: list[Any] = []

    def counted(*arguments: Any, **sizes: Any) -> None:
        checked.append(arguments)
        check_request(*arguments, **sizes)

    monkeypatch.setattr("inferfleet.producer.job_making.check_request", counted)
    mine = TenantFleet(fleet, f"{pool}.mine", policy=policy)

    await mine.submit(chat(), pool=pool)
    assert len(checked) == 1
    await mine.submit_many([mine.make(chat(), pool=pool) for _ in range(2)])
    assert len(checked) == 3


async def test_sessions_of_two_tenants_with_one_id_are_two(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    tenants = [TenantFleet(fleet, name) for name in ("default", f"{pool}.a", f"{pool}.b")]
    name = f"talk-{pool}"
    for tenant in tenants:
        await tenant.wait(await tenant.submit(chat(tenant.tenant), pool=pool, session_id=name))

    for tenant in tenants:
        first, _ = await tenant.session(name).history()
        assert first["content"] == tenant.tenant
    # Whatever the default tenant calls a session, it is not that of another tenant.
    assert await tenants[0].session(f"@{pool}.a/{name}").get() is None
    with pytest.raises(InvalidJobError, match="session_id: has 128 characters"):
        tenants[1].session("x" * 128)


async def test_a_session_that_python_makes_for_a_tenant_is_the_tenants(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    name = f"talk-{pool}"
    job = await fleet.submit(chat("secret"), pool=pool, tenant=f"{pool}.a", session_id=name)
    await fleet.wait(job)

    stored = f"@{pool}.a/{name}"
    assert job.session_id == stored
    assert await TenantFleet(fleet, "default").session(name).get() is None
    assert len(await TenantFleet(fleet, f"{pool}.a").session(name).turns()) == 1
    assert await TenantFleet(fleet, "default").session(stored).get() is None
    # Whoever knows it only by the short name would read another session than it adds to.
    with pytest.raises(InvalidJobError, match=f"tenant: .* stores this session under the id '{stored}'"):
        await fleet.session(name).send("more", pool=pool, tenant=f"{pool}.a")
    await fleet.session(stored).send("more", pool=pool, tenant=f"{pool}.a")
    # The names of tenants that only Python has may have any characters.
    odd = await fleet.submit(chat(), pool=pool, tenant=f"{pool}.a/b", session_id=name)
    assert odd.session_id == f"@{pool}.a%2Fb/{name}"
    with pytest.raises(InvalidJobError, match="session_id"):
        await fleet.submit(chat(), pool=pool, tenant=f"{pool}.a", session_id="")


async def test_the_id_that_a_tenant_sees_names_the_session(fleet: Fleet, pool: str) -> None:
    for tenant in (f"{pool}.a", "default"):
        view, own = TenantFleet(fleet, tenant), f"@{tenant}"
        for name in (pool, f"{own}/{pool}", f"{own}/{own}/{pool}", f"@other/{pool}"):
            job = await view.submit(chat(), pool=pool, session_id=name)
            assert job.session_id is not None
            assert view.stored_session(job.session_id) == view.stored_session(name)


async def test_a_record_of_an_older_client_belongs_to_the_tenant_in_its_request(
    fleet: Fleet, store: aioredis.Redis, start_worker: StartWorker, pool: str
) -> None:
    jobs = [await fleet.submit(chat(), pool=pool, tenant=tenant) for tenant in (f"{pool}.a", "default")]
    for job in jobs:
        await store.hdel(job_key(job.id), "tenant")
    assert [await fleet.tenant_of(job) for job in jobs] == [f"{pool}.a", "default"]
    for tenant, job in zip((f"{pool}.a", "default"), jobs, strict=True):
        view = TenantFleet(fleet, tenant)
        assert [record.id for record in await listed(view, pool)] == [job.id]
        assert (await view.get(job.id)).tenant == tenant

    await start_worker()
    await fleet.wait_many(jobs)

    # Its request is gone, but the worker has noted it.
    assert [await fleet.tenant_of(job) for job in jobs] == [f"{pool}.a", "default"]
    assert [(await fleet.get(job)).tenant for job in jobs] == [f"{pool}.a", "default"]


async def test_another_message_for_a_job_does_not_change_its_tenant(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    job = await fleet.submit(chat(), pool=pool, tenant=f"{pool}.a")
    # More urgent, so the worker gets it first.
    await fleet.submit(Job(id=job.id, pool=pool, body=chat(), tenant="default", priority=9))
    await start_worker()
    await fleet.wait(job)

    assert await fleet.tenant_of(job) == f"{pool}.a"
