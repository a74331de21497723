"""What no worker could read is refused before anything is recorded; what is accepted runs."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import PATIENCE_S, Connect, StartWorker, chat

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import (
    InferfleetError,
    InvalidJobError,
    JobNotFoundError,
    SessionTooLargeError,
)
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import job_key, result_key
from inferfleet.schemas.session import SessionExport, Turn, read_export


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


DEEPEST = nested(197)
"""As deep as a member of a body may be."""


async def keys_of(store: aioredis.Redis) -> set[bytes]:
    """All keys but those that clients and workers keep for themselves."""
    return {
        key
        async for key in store.scan_iter("inferfleet:*", count=10_000)
        if key.startswith((b"inferfleet:job:", b"inferfleet:session:", b"inferfleet:idempotency:"))
    }


@pytest.mark.parametrize(
    ("body", "options", "place"),
    [
        ({"foo": nested(198)}, {}, r"body\.foo: is nested too deeply"),
        ({"foo": nested(252)}, {}, r"body\.foo: is nested too deeply"),
        ({"foo": math.inf}, {}, r"body\.foo: inf is not a JSON number"),
        ({"foo": "\ud800"}, {}, r"body\.foo: has half a surrogate pair"),
        ({}, {"state_patch": {"x": math.nan}}, r"state_patch\.x: nan"),
        ({}, {"state_patch": {"x": 2**64}}, r"state_patch\.x: has a whole number of more than 64 bits"),
        ({}, {"state_patch": {"x": b"y"}}, r"state_patch\.x: the type bytes"),
        ({}, {"state_patch": {"x": "y" * 20_000_000}}, r"state_patch are 20,000,\d+ bytes"),
        ({}, {"metadata": {"x": "\udc80"}}, r"metadata\.x: has half a surrogate pair"),
        ({}, {"metadata": {"x": "y" * 20_000_000}}, r"metadata are 20,000,\d+ bytes"),
        ({}, {"tenant": "\ud800"}, r"tenant: "),
        ({}, {"expires_at": datetime(1, 1, 1, tzinfo=UTC)}, r"expires_at: .* is below the minimum"),
    ],
)
async def test_a_value_that_no_worker_could_read_leaves_nothing_behind(
    fleet: Fleet, store: aioredis.Redis, pool: str, body: Any, options: Any, place: str
) -> None:
    before = await keys_of(store)
    session = fleet.session(f"s-{pool}")
    for key in (pool, None):
        with pytest.raises(InvalidJobError, match=place):
            await fleet.submit(chat(**body), pool=pool, **{"idempotency_key": key, **options})
        with pytest.raises(InvalidJobError, match=place):
            await session.send("hello", body=body, pool=pool, **{"idempotency_key": key, **options})
    assert await keys_of(store) <= before  # What other tests have left may expire meanwhile.
    # The key is free, and the session goes on.
    assert await session.send("good bye", pool=pool, idempotency_key=pool)


async def test_the_deepest_request_that_is_accepted_runs_also_as_a_turn(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    session = fleet.session(f"s-{pool}")
    plain = await fleet.submit(chat(foo=DEEPEST), pool=pool)
    messages = [{"role": "user", "content": "hello", "foo": nested(195)}]
    first, second = [
        await session.send(messages, body={"foo": DEEPEST}, state_patch={"deep": DEEPEST}, pool=pool)
        for _ in range(2)
    ]
    for job in (plain, first, second):
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    assert await session.state() == (2, {"deep": DEEPEST})
    # The whole session can be moved.
    document = (await session.export()).model_dump_json()
    copy = fleet.session(f"t-{pool}")
    await copy.import_(read_export(document))
    assert (await copy.history(), (await copy.state())[1]) == (await session.history(), {"deep": DEEPEST})
    third = await copy.send(messages, pool=pool)
    assert (await fleet.wait(third, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"x": math.nan}, r"\.x: nan is not a JSON number"),
        ([2**70], r"\[0\]: has a whole number of more than 64 bits"),
        ({"x": {"y": "\ud800"}}, r"\.x\.y: has half a surrogate pair"),
        ({"x": b"y"}, r"\.x: the type bytes has no form in JSON"),
        ({1: 2}, r": has a key that is not a string"),
        (nested(199), r"\.a: is nested too deeply"),
        (nested(5_000), r"\.a: is nested too deeply"),
    ],
)
async def test_a_state_that_nobody_could_read_is_refused_and_the_old_one_stays(
    fleet: Fleet, store: aioredis.Redis, pool: str, value: Any, problem: str
) -> None:
    session = fleet.session(f"s-{pool}")
    assert await session.update_state({"x": 1}, version=0) == 1
    before = await keys_of(store)
    with pytest.raises(InvalidJobError, match=f"^state{problem}"):
        await session.update_state(value, version=1)
    with pytest.raises(InvalidJobError, match=f"^patch{problem}"):
        await session.patch_state(value)
    given = Turn(job_id=new_job_id(), messages=({"role": "user", "content": "x", "extra": value},), at=NOW)
    other = fleet.session(f"t-{pool}")
    for export in (
        SessionExport(id="x", turns=(given,)),
        SessionExport(id="x", turns=(), state=value),
    ):
        with pytest.raises(InvalidJobError, match=problem.partition(": ")[2]):
            await other.import_(export)
    assert await session.state() == (1, {"x": 1})
    assert await keys_of(store) <= before  # What other tests have left may expire meanwhile.


NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_history_that_no_engine_could_take_is_not_imported(fleet: Fleet, pool: str) -> None:
    turn = Turn(job_id=new_job_id(), messages=({"role": "assistant", "tool_calls": [{}]},), at=NOW)
    with pytest.raises(InvalidJobError, match=r"^turns\[0\]\.messages\[0\]\.tool_calls\[0\]\.id: is missing"):
        await fleet.session(f"s-{pool}").import_(SessionExport(id="x", turns=(turn,)))


async def test_a_state_that_is_too_large_for_redis_is_too_large_for_its_session(
    connect: Connect, pool: str
) -> None:
    async with connect(max_session_bytes=1000) as fleet:
        with pytest.raises(SessionTooLargeError):
            await fleet.session(f"s-{pool}").update_state("x" * 2000, version=0)


@pytest.mark.parametrize("limit", ["idle_ttl_s", "max_history_tokens"])
@pytest.mark.parametrize("value", [0, -1, 10**16, 10**400, 1.5, "60", True])
async def test_limits_that_no_session_can_have_are_refused(
    fleet: Fleet, pool: str, limit: str, value: Any
) -> None:
    session = fleet.session(f"s-{pool}")
    with pytest.raises(InvalidJobError, match=f"^{limit}: "):
        await session.configure(**{limit: value})
    assert await session.get() is None


async def test_of_many_jobs_the_one_that_is_bad_is_named(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    before = await keys_of(store)
    with pytest.raises(InvalidJobError, match=r"^number 2 of the jobs: body\.temperature: 3 is above"):
        await fleet.submit_many(["one", chat("two"), chat("three", temperature=3), ""], pool=pool)
    assert await keys_of(store) <= before  # What other tests have left may expire meanwhile.


@pytest.mark.parametrize(
    ("field", "value"),
    [("submitted_at", "-62135596900000"), ("started_at", "1" + "0" * 30), ("finished_at", "soon")],
)
async def test_a_record_with_a_time_that_no_calendar_has_is_read_without_it(
    fleet: Fleet, store: aioredis.Redis, pool: str, field: str, value: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await store.hset(job_key(job.id), field, value)
    record = (await fleet.get_many([job]))[job.id]
    assert record == await fleet.get(job)
    assert record is not None
    assert (record.state, getattr(record, field)) == (JobState.QUEUED, None)


async def test_a_record_that_cannot_be_read_does_not_keep_others_from_their_reader(
    fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    good, *bad = await fleet.submit_many(["hello"] * 4, pool=pool)
    await store.hset(job_key(bad[0].id), "state", "lost in thought")
    await store.hdel(job_key(bad[1].id), "pool")
    await store.set(result_key(bad[2].id), b'{"job_id": 1}')
    records = await fleet.get_many([*bad, good])
    assert records == {good.id: await fleet.get(good), **{job.id: None for job in bad}}
    for job in bad:
        with pytest.raises(InferfleetError, match=f"the record of job {job.id} cannot be read"):
            await fleet.get(job)


async def test_an_id_that_cannot_be_written_is_an_unknown_one(fleet: Fleet, pool: str) -> None:
    job = Job(pool=pool, body=chat())
    for unknown in ("\ud800", "", "\0", job.id):
        with pytest.raises(JobNotFoundError):
            await fleet.get(unknown)
    ids: list[Any] = ["\ud800", "", "a b", None, 7]
    for session_id in ids:
        with pytest.raises(InvalidJobError, match="is not a session id"):
            fleet.session(session_id)
