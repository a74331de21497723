"""What an operator sees of the fleet: its jobs, its pools and its workers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable
from typing import Any, Protocol

import pytest
import redis.asyncio as aioredis
import typer
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    StartWorkerProcess,
    chat,
    eventually,
    slow_chat,
    until_running,
    until_tokens,
)
from tests.integration.test_stalled_jobs import stall
from typer.testing import CliRunner, Result

from inferfleet.cli import jobs as jobs_commands
from inferfleet.cli import pool as pool_commands
from inferfleet.cli import worker as worker_commands
from inferfleet.producer import Fleet
from inferfleet.producer.job_listing import PAGE_READS, JobFilter
from inferfleet.producer.positions import WaitReason
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import (
    InvalidJobError,
    PartialSubmitError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.names import POOLS_KEY, open_key, worker_key
from inferfleet.wire.redis import job_listing
from inferfleet.wire.redis.heartbeats import forget_heartbeat, read_phase, write_heartbeat
from inferfleet.wire.redis.records import JobRecords

PAUSES_OFTEN: dict[str, Any] = {"heartbeat_interval_s": 0.05}


class Prompt(Protocol):
    def __call__(self, app: typer.Typer, *arguments: str) -> Awaitable[Result]: ...


@pytest.fixture
def at_prompt(environment: dict[str, str]) -> Prompt:
    """Run a command in this process: a new one for each takes most of a second."""

    async def run(app: typer.Typer, *arguments: str) -> Result:
        runner = CliRunner(env={**environment, "COLUMNS": "300"})
        result = await asyncio.to_thread(lambda: runner.invoke(app, arguments))
        assert not result.exception, result.exception
        return result

    return run


async def ids(fleet: Fleet, **conditions: Any) -> list[str]:
    return [record.id async for record in fleet.list_jobs(JobFilter(**conditions))]


# Listing


@pytest.mark.store
async def test_every_unfinished_job_is_listed_once_the_most_urgent_and_oldest_first(
    fleet: Fleet, store: aioredis.Redis, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where pages end between jobs of the same millisecond."""
    monkeypatch.setattr(job_listing, "PAGE", 3)
    submitted = await fleet.submit_many(Job(pool=pool, body=chat(), priority=n % 2) for n in range(22))
    for place, job in enumerate(submitted):
        await store.zadd(open_key(pool, job.priority), {job.id: 1000 + place // 8})

    listed = await ids(fleet, pool=pool)

    assert sorted(listed) == sorted(job.id for job in submitted)
    order = {job.id: (-job.priority, number // 8) for number, job in enumerate(submitted)}
    assert [order[job_id] for job_id in listed] == sorted(order.values())


async def test_jobs_are_listed_by_conditions(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(max_running=1, look_ahead=0)
    running = await fleet.submit(slow_chat(tokens=1000, step_s=0.1), pool=pool, priority=9)
    await until_running(fleet, running)
    turn = await fleet.submit("turn", pool=pool, session_id=f"s-{pool}")
    old = await fleet.submit("old", pool=pool, metadata={"team": "a", "run": "1"})
    await store.zadd(open_key(pool, old.priority), {old.id: 1000})

    assert set(await ids(fleet, pool=pool)) == {running.id, turn.id, old.id}
    assert set(await ids(fleet)) >= {running.id, turn.id, old.id}
    assert await ids(fleet, pool=pool, state=JobState.RUNNING) == [running.id]
    assert await ids(fleet, pool=pool, state=JobState.QUEUED) == [old.id, turn.id]
    assert await ids(fleet, pool=pool, priority=9) == [running.id]
    assert await ids(fleet, session_id=f"s-{pool}") == [turn.id]
    assert await ids(fleet, pool=pool, older_than_s=60) == [old.id]
    assert await ids(fleet, pool=pool, metadata={"team": "a"}) == [old.id]
    assert await ids(fleet, pool=pool, metadata={"team": "b"}) == []
    for refused in ({"state": JobState.FAILED}, {"priority": 10}, {"pool": "No Pool"}):
        with pytest.raises(InvalidJobError):
            await ids(fleet, **refused)


async def test_a_job_that_has_ended_is_not_listed(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit("hello", pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    # As a process leaves it that died in between.
    await store.zadd(open_key(pool, job.priority), {job.id: 1000, "no-such-job": 1000})

    assert await ids(fleet, pool=pool) == []


async def test_jobs_are_cancelled_by_conditions_and_only_with_some(fleet: Fleet, pool: str) -> None:
    submitted = await fleet.submit_many(Job(pool=pool, body=chat(), priority=n % 2) for n in range(150))

    cancelled = [pair async for pair in fleet.cancel_jobs(JobFilter(pool=pool, priority=1))]

    assert sorted(cancelled) == sorted((it.id, JobState.CANCELLED) for it in submitted if it.priority)
    assert set(await ids(fleet, pool=pool)) == {job.id for job in submitted if not job.priority}
    with pytest.raises(InvalidJobError, match="at least one condition"):
        await anext(fleet.cancel_jobs(JobFilter()))


async def test_the_commands_list_and_cancel(fleet: Fleet, at_prompt: Prompt, pool: str) -> None:
    submitted = await fleet.submit_many(Job(pool=pool, body=chat(), priority=n) for n in (3, 7))
    where = ("--where", f"pool={pool}", "--where", "older-than=0s")

    listed = await at_prompt(jobs_commands.app, "list", *where)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [it.id for it in submitted[::-1]]
    as_json = json.loads((await at_prompt(jobs_commands.app, "list", *where, "--json")).stdout)
    assert [(job["id"], job["priority"]) for job in as_json] == [
        (it.id, it.priority) for it in submitted[::-1]
    ]
    cut = await at_prompt(jobs_commands.app, "list", *where, "--limit", "1", "--json")
    assert (len(json.loads(cut.stdout)), "more than 1" in cut.stderr) == (1, True)

    urgent = (*where, "--where", "priority=high", "--json")
    dry = json.loads((await at_prompt(jobs_commands.app, "cancel", *urgent)).stdout)
    assert dry == {"dry_run": True, "jobs": {"queued": 1}}
    assert len(await ids(fleet, pool=pool)) == 2
    done = json.loads((await at_prompt(jobs_commands.app, "cancel", *urgent, "--yes")).stdout)
    assert done == {"dry_run": False, "jobs": {"cancelled": 1}}
    assert await ids(fleet, pool=pool) == [submitted[0].id]
    nothing = await at_prompt(jobs_commands.app, "list", "--where", f"session=s-{pool}", "--json")
    assert json.loads(nothing.stdout) == []
    for tenant, found in (("default", 1), (pool, 0)):
        listed = await at_prompt(jobs_commands.app, "list", *where, "--where", f"tenant={tenant}", "--json")
        assert len(json.loads(listed.stdout)) == found


async def test_a_cancel_that_stops_halfway_says_how_many_it_has_cancelled(
    fleet: Fleet, environment: dict[str, str], pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await fleet.submit_many(Job(pool=pool, body=chat()) for _ in range(2))
    cancel = Fleet.cancel

    async def cancel_others(self: Fleet, job: Job | str) -> JobState:
        if job == first.id:
            raise ServiceUnreachableError("away")
        return await cancel(self, job)

    monkeypatch.setattr(Fleet, "cancel", cancel_others)
    arguments = ["cancel", "--where", f"pool={pool}", "--yes"]
    runner = CliRunner(env=environment)
    result = await asyncio.to_thread(lambda: runner.invoke(jobs_commands.app, arguments))
    assert isinstance(result.exception, ServiceUnreachableError)
    assert result.stdout == "1 cancelled\n"


# Stories


async def test_a_jobs_story_tells_of_the_worker_that_died_and_the_one_that_resumed(
    fleet: Fleet,
    start_worker: StartWorker,
    start_worker_process: StartWorkerProcess,
    at_prompt: Prompt,
    pool: str,
) -> None:
    first = await start_worker_process(worker_id="first", lease_s="1")
    job = await fleet.submit(slow_chat(tokens=100, step_s=0.05), pool=pool, stream=True)
    await until_tokens(fleet, job, 5)
    first.signal(signal.SIGKILL)
    await first.ended()
    await start_worker(worker_id="second")
    await fleet.wait(job, timeout_s=PATIENCE_S)

    events = await fleet.timeline(job)

    assert [(event.kind, event.worker_id) for event in events] == [
        ("queued", None),
        ("started", "first"),
        ("tokens", "first"),
        ("lost", "first"),
        ("resumed", "second"),
        ("tokens", "second"),
        ("finished", "second"),
    ]
    assert sum(event.tokens for event in events if event.kind == "tokens") == events[-1].tokens == 100
    assert await fleet.waits_for(job) is None
    shown = await at_prompt(jobs_commands.app, "show", job.id)
    assert "lost its worker first" in shown.stdout
    assert f"attempt 2 resumed on second after token {events[2].tokens}" in shown.stdout
    as_json = json.loads((await at_prompt(jobs_commands.app, "show", job.id, "--json")).stdout)
    assert [event["kind"] for event in as_json["timeline"]] == [event.kind for event in events]
    assert (as_json["job"]["state"], as_json["waits_for"]) == ("succeeded", None)


async def test_it_is_said_why_a_job_does_not_run(
    fleet: Fleet, start_worker: StartWorker, records: JobRecords, foreign: ForeignClient, pool: str
) -> None:
    async def reason(job: Job) -> WaitReason | None:
        wait = await fleet.waits_for(job)
        return None if wait is None else wait.reason

    silent = await fleet.submit("hello", pool=pool)
    await stall(records, foreign, silent)
    assert await reason(silent) is WaitReason.SILENT
    await fleet.cancel(silent)

    first = await fleet.submit(
        slow_chat(tokens=1000, step_s=0.1), pool=pool, session_id=f"s-{pool}", priority=9
    )
    assert await reason(first) is WaitReason.NO_WORKER
    await fleet.pause_pool(pool)
    assert await reason(first) is WaitReason.PAUSED
    await fleet.resume_pool(pool)
    await start_worker(max_running=1, look_ahead=1, sweep_interval_s=0.2, retry_base_s=600, retry_cap_s=600)
    await until_running(fleet, first)
    assert await reason(first) is None
    turn = await fleet.submit("turn", pool=pool, session_id=f"s-{pool}")
    assert await reason(turn) is WaitReason.TURN
    held = await fleet.submit("held", pool=pool, priority=3)

    async def waits_for_slot() -> bool:
        return await reason(held) is WaitReason.SLOT

    await eventually(waits_for_slot)
    queued = await fleet.submit("queued", pool=pool, priority=3)
    assert await reason(queued) is WaitReason.QUEUE

    for job in (turn, first, held, queued):
        await fleet.cancel(job)
    failing = await fleet.submit(
        chat("fails", simulated={"fail": "engine_error", "fail_times": 9}), pool=pool
    )

    async def waits_for_retry() -> bool:
        return await reason(failing) is WaitReason.RETRY

    await eventually(waits_for_retry)
    (retry,) = (await fleet.position(failing)).waits
    assert retry.until is not None


async def test_a_position_counts_the_jobs_ahead_and_names_every_closed_gate(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, at_prompt: Prompt, pool: str
) -> None:
    priorities = (2, 7, 4, 4, 4, 9)
    jobs = await fleet.submit_many(Job(pool=pool, body=chat(), priority=n) for n in priorities)
    for place, job in enumerate(jobs):
        await store.zadd(open_key(pool, job.priority), {job.id: 1000 + place // 4})
    fours = sorted((1000 + place // 4, jobs[place].id) for place in (2, 3, 4))
    first = await fleet.submit("turn", pool=pool, session_id=f"s-{pool}", priority=0)
    second = await fleet.submit("turn", pool=pool, session_id=f"s-{pool}", priority=0)
    await fleet.pause_pool(pool)

    assert [(await fleet.position(job_id)).ahead for _, job_id in fours] == [2, 3, 4]
    assert ((await fleet.position(jobs[0])).ahead, (await fleet.position(jobs[5])).ahead) == (5, 0)
    position = await fleet.position(second)
    assert [wait.reason for wait in position.waits] == ["turn", "paused", "no_worker"]
    assert position.waits[0].job_id == first.id
    assert (position.workers, position.ahead, position.starts_in_s) == (0, 7, None)
    shown = (await at_prompt(jobs_commands.app, "show", second.id)).stdout
    assert [line.split(":")[0] for line in shown.splitlines()[-4:]] == ["waits"] * 3 + ["ahead"]
    # As after a crash between the two.
    await store.zrem(open_key(pool, 9), jobs[5].id)
    assert (await fleet.position(jobs[5])).ahead is None


async def test_the_start_of_a_job_is_estimated_from_what_the_workers_have_ended(
    fleet: Fleet, start_worker: StartWorker, at_prompt: Prompt, pool: str
) -> None:
    await start_worker(max_running=1, look_ahead=0, **PAUSES_OFTEN)
    await fleet.wait_many(await fleet.submit_many(Job(pool=pool, body=chat()) for _ in range(10)))
    running = await fleet.submit(slow_chat(tokens=1000, step_s=0.1), pool=pool, priority=9)
    await until_running(fleet, running)
    waiting = await fleet.submit_many(Job(pool=pool, body=chat()) for _ in range(3))

    async def counted() -> bool:
        workers = (await fleet.pool(pool)).workers
        return any(worker.running == 1 and worker.finished_per_s > 0 for worker in workers)

    async def only_unfinished_are_ahead() -> bool:
        return {(await fleet.position(job)).ahead for job in waiting} == {1, 2, 3}

    await eventually(counted)
    # A job may leave the index a moment after its end.
    await eventually(only_unfinished_are_ahead)
    (worker,) = (await fleet.pool(pool)).workers
    assert worker.mean_job is not None
    for position in [await fleet.position(job) for job in waiting]:
        assert position.ahead is not None
        # The waiting jobs are as those that have ended, and one runs at a time.
        assert position.starts_in_s == pytest.approx(position.ahead * worker.mean_job.seconds, rel=0.05)
    assert (await fleet.position(running)).waits == ()
    shown = (await at_prompt(jobs_commands.app, "show", waiting[0].id)).stdout
    assert "jobs per second have ended lately, so it may start in" in shown


# Pools and workers


async def test_a_job_puts_its_pool_on_the_list(
    fleet: Fleet, connect: Connect, store: aioredis.Redis, pool: str
) -> None:
    await store.zrem(POOLS_KEY, pool)
    assert pool not in [known.pool for known in await fleet.pools()]
    async with connect() as other:
        await other.submit("hello", pool=pool)
    (found,) = [known for known in await fleet.pools() if known.pool == pool]
    assert found.unfinished == {4: 1}


async def test_a_pool_that_does_not_exist_gets_on_no_list_by_jobs_that_are_refused(
    fleet: Fleet, connect: Connect, store: aioredis.Redis, pool: str
) -> None:
    """Views look at each pool of the list, for weeks."""
    async with connect() as other:
        for name in (f"{pool}.typo", f"{pool}.other"):
            with pytest.raises(UnknownPoolError):
                await other.submit("hello", pool=name)
            with pytest.raises(PartialSubmitError):
                await other.submit_many([Job(pool=name, body=chat())])
    assert [name for name in await store.zrange(POOLS_KEY, 0, -1) if pool.encode() + b"." in name] == []


async def test_pools_without_jobs_cost_a_page_nothing(fleet: Fleet, store: aioredis.Redis, pool: str) -> None:
    # The jobs of other tests do cost something.
    await store.delete(POOLS_KEY)
    names = [f"{pool}.{number:04}" for number in range(PAGE_READS // 10 + 1)]
    await store.zadd(POOLS_KEY, dict.fromkeys(names, fleet.pipeline.clock.now_ms()))
    try:
        job = await fleet.submit("hello", pool=pool, tenant=pool)
        page = await fleet.jobs_page(JobFilter(tenant=pool), after=None, limit=10)
    finally:
        await store.zrem(POOLS_KEY, *names)
    assert ([record.id for record in page.jobs], page.next) == ([job.id], None)


@pytest.mark.store
async def test_pools_and_workers_are_shown(
    fleet: Fleet, start_worker: StartWorker, at_prompt: Prompt, store: aioredis.Redis, pool: str
) -> None:
    empty = await fleet.pool(pool)
    assert (empty.ready, empty.held, empty.dead_letters, empty.unfinished) == (0, 0, 0, {})
    assert (empty.oldest_waiting_s, empty.workers, empty.paused_at) == (None, (), None)

    worker = await start_worker(max_running=1, look_ahead=0, worker_id=f"w-{pool}", **PAUSES_OFTEN)
    running = await fleet.submit(slow_chat(tokens=1000, step_s=0.1), pool=pool, priority=9)
    await until_running(fleet, running)
    waiting = await fleet.submit_many(Job(pool=pool, body=chat(), priority=n) for n in (2, 2, 7))
    await store.zadd(open_key(pool, 2), {waiting[1].id: 1000})

    async def counted() -> bool:
        status = await fleet.pool(pool)
        return (status.ready, status.held) == (3, 1)

    await eventually(counted)
    status = await fleet.pool(pool)
    assert list(status.unfinished.items()) == [(9, 1), (7, 1), (2, 2)]
    assert status.oldest_waiting_s is not None
    assert status.oldest_waiting_s > 3600
    assert [(it.worker_id, it.phase) for it in status.workers] == [(f"w-{pool}", WorkerPhase.READY)]
    assert worker.engine.identity is not None
    assert status.workers[0].model_identity == worker.engine.identity.short
    assert pool in [known.pool for known in await fleet.pools()]
    with pytest.raises(UnknownPoolError, match="there is no pool 'nobody-knows-it'"):
        await fleet.pool("nobody-knows-it")
    with pytest.raises(UnknownPoolError, match="there is no pool 'nobody-knows-it'"):
        await fleet.pause_pool("nobody-knows-it")

    shown = await at_prompt(pool_commands.app, "show", pool)
    assert "unfinished by priority: 9: 1, 7: 1, 2: 2" in shown.stdout
    assert f"w-{pool}" in shown.stdout
    as_json = json.loads((await at_prompt(pool_commands.app, "show", pool, "--json")).stdout)
    assert (as_json["ready"], as_json["unfinished"]) == (3, {"9": 1, "7": 1, "2": 2})
    listed = json.loads((await at_prompt(pool_commands.app, "list", "--json")).stdout)
    assert pool in [known["pool"] for known in listed]
    assert pool in (await at_prompt(pool_commands.app, "list")).stdout
    workers = json.loads((await at_prompt(worker_commands.app, "list", "--json")).stdout)
    assert f"w-{pool}" in [it["worker_id"] for it in workers]
    assert f"w-{pool}" in (await at_prompt(worker_commands.app, "list")).stdout


@pytest.mark.store
@pytest.mark.parametrize(
    ("field", "value", "counts"),
    [
        ("phase", "warming up", False),
        ("ended", '[{"code": "bored"}]', True),
        ("swap", '{"state', True),
        ("slots", "some", True),
    ],
)
async def test_what_another_version_wrote_in_a_heartbeat_hides_no_other_worker(
    fleet: Fleet,
    store: aioredis.Redis,
    pool: str,
    caplog: pytest.LogCaptureFixture,
    field: str,
    value: str,
    counts: bool,
) -> None:
    now = fleet.pipeline.clock.now()
    ours, other = f"ours-{pool}", f"other-{pool}"
    try:
        for name in (ours, other):
            heartbeat = Heartbeat(
                worker_id=name,
                pool=pool,
                phase=WorkerPhase.READY,
                engine="simulated",
                model="m",
                version="1",
                slots=4,
                started_at=now,
                seen_at=now,
            )
            await write_heartbeat(fleet.pipeline, heartbeat, ttl_s=PATIENCE_S)
        await store.hset(worker_key(other), field, value)

        seen = [[it.worker_id for it in await fleet.workers() if it.pool == pool] for _ in range(2)]

        assert seen == [[other, ours] if counts else [ours]] * 2
        (line,) = [it for it in caplog.messages if other in it]
        assert f"cannot read {field} in the heartbeat" in line
        assert ("does not count" in line) is not counts
        # It can be drained all the same.
        assert (await read_phase(fleet.pipeline, other) or ("",))[0] == (value if not counts else "ready")
    finally:
        for name in (ours, other):
            await forget_heartbeat(fleet.pipeline, name)
