"""Rollouts on the web page: both pools' figures, what the tests find, and changing a rollout's course."""

from __future__ import annotations

from datetime import timedelta

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import eventually
from tests.integration.ui.conftest import HOSTILE, Reader, assert_escaped, start_rollout

from inferfleet.producer import Fleet
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas.names import rollout_key
from inferfleet.schemas.rollout import RolloutPhase
from inferfleet.wire.redis.ended_counts import add_counts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.rollouts import change_rollout, read_rollout


@pytest.fixture
async def canary(fleet: Fleet, pool: str) -> str:
    """The canary pool of a rollout that has begun."""
    return await start_rollout(fleet, pool)


async def card(reader: Reader, pool: str) -> str:
    """Return the pool's part of the page, empty if it has none."""
    page = await reader.page("/ui/rollouts")
    return page.partition(f'aria-labelledby="rollout-{pool}"')[2].partition("</section>")[0]


async def phase(fleet: Fleet, pool: str) -> RolloutPhase:
    rollout = (await Rollouts(fleet).read(pool)).rollout
    assert rollout is not None
    return rollout.phase


async def test_a_rollout_shows_its_step_and_what_both_pools_have_ended_since(
    reader: Reader, pipeline: CommandPipeline, pool: str, canary: str
) -> None:
    shown = await card(reader, pool)
    assert "<b>5 %</b> of new jobs" in shown
    assert "step 1 of 3 (5 %, 50 %, 100 %)" in shown
    assert shown.count(">–</td>") == 8
    # Bucket 100 begins at 73 ms, bucket 160 at 0.98 s.
    counts = {"succeeded": 990, "failed": 10, "first_token:100": 990, "wait:160": 1000}
    await add_counts(pipeline, pool, counts, call="one")
    await add_counts(pipeline, canary, {"succeeded": 3, "failed": 1}, call="two")
    shown = await card(reader, pool)
    own, other = (row.partition("</tr>")[0] for row in shown.split("<tr>")[2:])
    assert [own.count(each) for each in (f">{pool}<", ">1,000<", ">10<", ">1.0%<", ">74 ms<")] == [1] * 5
    assert [other.count(each) for each in (f">{canary}<", ">4<", ">1<", ">25.0%<", ">–<")] == [1, 1, 1, 1, 3]
    assert "1 of 4 attempts failed" in shown
    assert '<span class="badge undecided">' in shown


async def test_a_rollout_whose_canary_does_nothing_says_so(
    reader: Reader, pipeline: CommandPipeline, store: aioredis.Redis, pool: str, canary: str
) -> None:
    async def shows() -> bool:
        # As if a gateway had looked for so long.
        await store.hset(rollout_key(pool), "led_since", 0)
        # The gateway finds that no job waits, and takes it back.
        kept = await read_rollout(pipeline, pool)
        assert kept.rollout is not None
        since = pipeline.clock.now() - timedelta(seconds=90)
        stalled = kept.rollout.model_copy(update={"stalled_since": since})
        await change_rollout(pipeline, stalled, revision=kept.revision)
        return "ended no attempt and generated no token for 1 min" in await card(reader, pool)

    await eventually(shows)


async def test_a_rollout_changes_its_course_after_a_question(
    fleet: Fleet, reader: Reader, pool: str, canary: str
) -> None:
    async def do(action: str, **fields: str) -> None:
        path = f"/ui/rollouts/{pool}/{action}"
        assert path in await card(reader, pool)
        before = await phase(fleet, pool)
        assert f"{action.capitalize()} the rollout of {pool}" in await reader.page(path)
        assert await phase(fleet, pool) is before
        answer = await reader.submit(path, **fields)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/rollouts")

    await do("pause")
    assert await phase(fleet, pool) is RolloutPhase.PAUSED
    await do("resume")
    assert await phase(fleet, pool) is RolloutPhase.RUNNING
    await do("promote", allow_no_workers="on")
    assert await phase(fleet, pool) is RolloutPhase.PROMOTED
    assert "What the tests find" not in await card(reader, pool)
    await do("abort", reason=HOSTILE)
    assert_escaped(await card(reader, pool))

    async def aborted() -> bool:
        return '<span class="badge aborted">' in await card(reader, pool)

    await eventually(aborted)
    assert f"/ui/rollouts/{pool}/" not in await card(reader, pool)
    await start_rollout(fleet, pool)
    await do("promote", allow_no_workers="on")
    await do("finish")
    assert await card(reader, pool) == ""


async def test_what_a_rollout_does_not_allow_is_refused_with_the_reason(
    fleet: Fleet, reader: Reader, pool: str, canary: str
) -> None:
    refused = await reader.submit(f"/ui/rollouts/{pool}/promote")
    assert refused.status_code == 409
    assert f"the canary pool {canary!r} has no ready worker".replace("'", "&#39;") in refused.text
    assert "Accept a canary pool without a ready worker" in refused.text
    assert await phase(fleet, pool) is RolloutPhase.RUNNING
    refused = await reader.submit(f"/ui/rollouts/{pool}/finish")
    assert (refused.status_code, "needs one that is promoted" in refused.text) == (409, True)
    for path, status in (
        (f"{pool}-unknown/pause", 404),
        (f"{pool}/explode", 400),
        ("%3Cscript%3E/pause", 400),
        ("a" * 2000 + "/pause", 400),
    ):
        page = await reader.page(f"/ui/rollouts/{path}", status)
        assert "<script>" not in page
        assert (await reader.submit(f"/ui/rollouts/{path}")).status_code == status
