"""Unfinished jobs in pages: each is on one page, whatever comes and goes, and a page's work is limited."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import PATIENCE_S, StartGateway, chat

from inferfleet.producer import Fleet, JobFilter, job_listing
from inferfleet.producer.job_pages import JobPage, Place
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas import Job
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.names import open_key
from inferfleet.wire.redis import job_listing as index
from inferfleet.wire.redis.job_reading import JobReading


async def pages(view: TenantFleet, pool: str, *, limit: int) -> AsyncGenerator[JobPage]:
    page = await view.jobs_page(JobFilter(pool=pool), after=None, limit=limit)
    yield page
    while page.next is not None:
        page = await view.jobs_page(JobFilter(pool=pool), after=page.next, limit=limit)
        yield page


async def submit(view: TenantFleet, pool: str, priorities: Iterable[int]) -> list[Job]:
    return await view.submit_many(
        [view.make(chat(), pool=pool, priority=priority) for priority in priorities]
    )


@pytest.mark.store
async def test_every_job_is_on_one_page_also_where_others_come_and_go(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    view = TenantFleet(fleet, f"{pool}.a")
    submitted = await submit(view, pool, [n % 2 for n in range(30)])
    for place, job in enumerate(submitted):
        await store.zadd(open_key(pool, job.priority), {job.id: 1000 + place // 8})

    found: list[str] = []
    gone: set[str] = set()
    async for page in pages(view, pool, limit=4):
        assert len(page.jobs) <= 4
        found += [record.id for record in page.jobs]
        if page.jobs:
            # The job at which the next page begins, and one that is not listed yet.
            rest = [job.id for job in submitted if job.id not in {*found, *gone}]
            for job_id in (found[-1], *rest[-1:]):
                await view.cancel(job_id)
            gone.update(rest[-1:])
            await submit(view, pool, [9])

    assert len(found) == len(set(found))
    assert set(found) == {job.id for job in submitted} - gone


async def test_a_page_reads_few_jobs_of_other_tenants_and_names_none(
    fleet: Fleet, store: aioredis.Redis, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "PAGE", 5)
    monkeypatch.setattr(job_listing, "PAGE_READS", 10)
    mine, yours = TenantFleet(fleet, f"{pool}.mine"), TenantFleet(fleet, f"{pool}.yours")
    others = await submit(yours, pool, [4] * 60)
    own = await submit(mine, pool, [4] * 3)
    # A burst of one millisecond, longer than a page may read, and mine before, within and behind the others.
    times = {job.id: 1000 + (0 if place < 25 else place) for place, job in enumerate(others)}
    times |= {own[0].id: 999, own[1].id: 1000, own[2].id: 2000}
    await store.zadd(open_key(pool, 4), {**times})
    read: list[int] = []
    get_many = JobReading.get_many

    async def counted(self: JobReading, ids: Iterable[str], **options: Any) -> Any:
        asked = list(ids)
        read[-1] += len(asked)
        return await get_many(self, asked, **options)

    monkeypatch.setattr(JobReading, "get_many", counted)

    found: list[str] = []
    read.append(0)
    async for page in pages(mine, pool, limit=100):
        found += [record.id for record in page.jobs]
        named = {job.id for job in others if page.next and job.id in Place.at(page.next).entry}
        assert not named
        read.append(0)

    assert found == [job.id for job in own]
    assert len(read) > 3
    assert sum(read) < len(times) + 10 * len(read)
    # The burst in one go, others in small pages.
    assert sorted(read)[-2] <= 15


async def test_only_a_cursor_of_a_page_is_accepted(fleet: Fleet) -> None:
    for cursor in ("", "x", "e30", "é", Place("pool", 4).cursor()[:-6], "W10"):
        with pytest.raises(InvalidJobError, match="after"):
            await fleet.jobs_page(after=cursor)
    for limit in (0, -1):
        with pytest.raises(InvalidJobError, match=f"limit: .* {limit} "):
            await fleet.jobs_page(limit=limit)


async def test_jobs_are_listed_over_http_by_metadata_and_time_a_page_at_a_time(
    fleet: Fleet, start_gateway: StartGateway, store: aioredis.Redis, pool: str
) -> None:
    async with httpx2.AsyncClient(base_url=(await start_gateway()).url, timeout=PATIENCE_S) as http:
        jobs = [{"body": chat(), "metadata": {"team": team, "a[b]": "ö &"}} for team in "aab"]
        first, second, third = (job["id"] for job in (await http.post("/v1/jobs", json=jobs)).json())
        await store.zadd(open_key(pool, 4), {first: 1000})
        begun = datetime.fromtimestamp(1, tz=datetime.now().astimezone().tzinfo)

        async def listed(**conditions: Any) -> list[str]:
            found: list[str] = []
            after: dict[str, str] = {}
            while True:
                asked = {"pool": pool, **conditions, **after}
                answer = await http.get("/v1/jobs", params=asked)
                assert answer.status_code == 200, answer.text
                page = answer.json()
                found += [job["id"] for job in page["data"]]
                assert page["has_more"] == (page["next"] is not None)
                if not page["has_more"]:
                    return found
                after = {"after": page["next"]}

        assert sorted(await listed(limit=1)) == sorted([first, second, third])
        assert (await listed(limit=1))[0] == first
        assert sorted(await listed(**{"metadata[team]": "a", "metadata[a[b]]": "ö &"})) == sorted(
            [first, second]
        )
        assert await listed(**{"metadata[team]": "b"}) == [third]
        assert await listed(**{"metadata[team]": "c"}) == []
        assert await listed(until=begun.isoformat()) == [first]
        assert await listed(since=begun.isoformat(), until=(begun + timedelta(days=1)).isoformat()) == [first]
        assert sorted(await listed(since=(begun + timedelta(seconds=1)).isoformat())) == sorted(
            [second, third]
        )
        for unread in ("metadata", "metadata[team", "metadata.team"):
            answer = await http.get("/v1/jobs", params={"pool": pool, unread: "c"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")
            assert unread in answer.json()["error"]["message"]
        assert sorted(await listed(priority="normal")) == sorted([first, second, third])
        assert await listed(priority="high") == []
        for wrong, said in (
            ({"after": "x"}, "'x'"),
            ({"since": "yesterday"}, "'yesterday'"),
            ({"until": "2026-11-26T12:00:00"}, "'2026-11-26T12:00:00'"),
            ({"priority": "42"}, "'42'"),
            ({"session": "talk"}, "did you mean 'session_id'?"),
            ({"order": "asc"}, "until, metadata[KEY], limit, after"),
        ):
            answer = await http.get("/v1/jobs", params=wrong)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(wrong)))
            assert said in answer.json()["error"]["message"]
