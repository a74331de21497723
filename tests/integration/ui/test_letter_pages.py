"""Dead letters on the web page: what is shown of them, and submitting them again, all or by a filter."""

from __future__ import annotations

import pytest
from tests.integration.conftest import ForeignClient, StartWorker, chat, eventually
from tests.integration.ui.conftest import HOSTILE, Reader, assert_escaped

from inferfleet.producer import Fleet
from inferfleet.schemas import Job
from inferfleet.schemas.names import DEAD_EXCHANGE


@pytest.fixture
async def dead(fleet: Fleet, start_worker: StartWorker, pool: str) -> list[Job]:
    """Two dead letters of different priorities and tenants."""
    worker = await start_worker()
    failing = chat("a secret", simulated={"fail": "engine_error"})
    jobs = [
        await fleet.submit(failing, pool=pool, max_attempts=1, priority=4),
        await fleet.submit(failing, pool=pool, max_attempts=1, priority=7, tenant=f"{pool}.<b>"),
    ]
    await fleet.wait_many(jobs)

    async def there() -> bool:
        return await fleet.dead_letters.count(pool) == 2

    await eventually(there)
    await worker.stop()
    return jobs


async def test_letters_are_shown_without_their_requests(
    reader: Reader, foreign: ForeignClient, dead: list[Job], pool: str
) -> None:
    await foreign.publish(HOSTILE.encode(), exchange=DEAD_EXCHANGE, headers={"x-inferfleet-message": HOSTILE})
    assert f"/ui/dead-letters/{pool}" in await reader.page("/ui/dead-letters")
    page = await reader.page(f"/ui/dead-letters/{pool}")
    assert_escaped(page)
    assert all(job.id in page for job in dead)
    assert f"/ui/jobs/{dead[0].id}" in page
    assert f"/ui/jobs/{dead[1].id}" not in page
    assert "a secret" not in page
    assert "not a job" in page
    filtered = await reader.page(f"/ui/dead-letters/{pool}?priority=7&message=engine_error")
    assert [job.id in filtered for job in dead] == [False, True]
    assert "None of the oldest" in await reader.page(f"/ui/dead-letters/{pool}?message=nothing")
    await reader.page(f"/ui/dead-letters/{pool}-unknown", 404)


async def test_letters_are_submitted_again_by_a_filter_after_a_question(
    fleet: Fleet, reader: Reader, dead: list[Job], pool: str
) -> None:
    path = f"/ui/dead-letters/{pool}/replay"
    asked = await reader.submit(path, priority="7")
    assert "Submit 1 dead letter of" in asked.text
    assert await fleet.dead_letters.count(pool) == 2
    done = await reader.submit(path, priority="7", confirmed="yes", counted="1")
    assert "1 job was submitted" in done.text
    (left,) = await fleet.dead_letters.read(pool)
    assert left.message_id == dead[0].id


async def test_all_that_were_counted_are_submitted_or_none(
    fleet: Fleet, reader: Reader, dead: list[Job], pool: str
) -> None:
    path = f"/ui/dead-letters/{pool}/replay"
    assert (await reader.submit(path, confirmed="yes")).status_code == 400
    assert (await reader.submit(path, confirmed="yes", counted="3")).status_code == 409
    assert await fleet.dead_letters.count(pool) == len(dead)
    assert "2 jobs were submitted" in (await reader.submit(path, confirmed="yes", counted="2")).text
    assert await fleet.dead_letters.count(pool) == 0
