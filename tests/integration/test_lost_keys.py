"""Redis lost a key of a job or a session: an end, or an error that names what is missing; no wrong text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from redis.exceptions import NoPermissionError
from tests.integration.conftest import (
    INSTANT,
    PATIENCE_S,
    Connect,
    RunCommand,
    StartWorker,
    answer_to,
    chat,
    eventually,
    journal_of,
    read_all,
    slow_chat,
    text_of,
    until_tokens,
)

from inferfleet.producer import Fleet, JournalLine, reader
from inferfleet.producer.sessions import Session
from inferfleet.schemas import Job, JobState, Result
from inferfleet.schemas.errors import (
    ConfigurationError,
    InferfleetError,
    JobDataLostError,
    JobNotFoundError,
    SessionError,
)
from inferfleet.schemas.journal import ENTRY_FIELD, FinishedEntry, JournalEntry, QueuedEntry, RestartedEntry
from inferfleet.schemas.names import (
    job_key,
    journal_key,
    lane_key,
    payloads_key,
    reply_key,
    result_key,
    session_key,
    state_key,
    turns_key,
)
from inferfleet.wire.redis.eviction import refuse_eviction
from inferfleet.worker.engines.simulated import expected_text

CHECK_S = 0.2


@pytest.fixture
async def watchful(connect: Connect, pool: str) -> AsyncIterator[Fleet]:
    """A client that looks at records often; the pool is declared."""
    async with connect(client_id=f"{pool}-c", state_check_interval_s=CHECK_S) as fleet:
        await fleet.declare_pool(pool)
        yield fleet


def since_the_restart(entries: list[JournalEntry]) -> list[JournalEntry]:
    """What counts of a stream in which the answer may have begun again."""
    restarts = [position for position, entry in enumerate(entries) if isinstance(entry, RestartedEntry)]
    return entries[restarts[-1] + 1 :] if restarts else entries


# A resume looks whether the journal has what the record counts


async def trim(store: aioredis.Redis, job: Job) -> None:
    await store.xtrim(journal_key(job.id), maxlen=1, approximate=False)


async def delete_journal(store: aioredis.Redis, job: Job) -> None:
    await store.delete(journal_key(job.id))


async def delete_a_line(store: aioredis.Redis, job: Job) -> None:
    lines: Any = await store.xrange(journal_key(job.id))
    tokens = [line_id for line_id, fields in lines if b'"kind":"tokens"' in fields[ENTRY_FIELD.encode()]]
    await store.xdel(journal_key(job.id), tokens[len(tokens) // 2])


async def write_garbage(store: aioredis.Redis, job: Job) -> None:
    await store.xadd(journal_key(job.id), {ENTRY_FIELD: "not ours"})


async def write_another_field(store: aioredis.Redis, job: Job) -> None:
    await store.xadd(journal_key(job.id), {"something": "else"})


async def repeat_a_line(store: aioredis.Redis, job: Job) -> None:
    lines: Any = await store.xrange(journal_key(job.id))
    tokens = [fields for _, fields in lines if b'"kind":"tokens"' in fields[ENTRY_FIELD.encode()]]
    await store.xadd(journal_key(job.id), tokens[0])


async def count_fewer(store: aioredis.Redis, job: Job) -> None:
    await store.hincrby(job_key(job.id), "tokens", -1)


@pytest.mark.parametrize(
    "damage",
    [
        *(trim, delete_journal, delete_a_line, write_garbage, write_another_field),
        *(repeat_a_line, count_fewer),
    ],
)
async def test_an_answer_whose_journal_has_a_hole_begins_again_and_says_so(
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    damage: Callable[[aioredis.Redis, Job], Awaitable[None]],
) -> None:
    first = await start_worker()
    job = await fleet.submit(slow_chat(tokens=250, step_s=0.01), pool=pool, stream=True)
    await until_tokens(fleet, job, 8)
    await first.stop()
    tokens = (await fleet.get(job)).tokens
    await damage(store, job)
    second = await start_worker()
    result = (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()
    assert result.text == answer_to(job)
    lines: Any = await store.xrange(journal_key(job.id))
    texts = [fields.get(ENTRY_FIELD.encode(), b"") for _, fields in lines]
    assert sum(b'"reason":"journal_incomplete"' in text for text in texts) == 1
    wasted = tokens - 1 if damage is count_fewer else tokens
    exposition = second.worker._metrics.exposition().decode()  # pyright: ignore[reportPrivateUsage]
    assert f'tokens_wasted_total{{pool="{pool}",reason="journal_incomplete"}} {wasted:.1f}' in exposition


async def test_a_journal_that_is_gone_while_its_job_runs_is_written_again(
    watchful: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    job = await watchful.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    early = asyncio.create_task(read_all(watchful.stream(job)))
    await until_tokens(watchful, job, 5)
    await store.delete(journal_key(job.id))
    assert (await watchful.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    assert text_of(since_the_restart(await early)) == answer_to(job)
    assert text_of(await journal_of(store, job)) == answer_to(job)
    assert text_of(await read_all(watchful.stream(job))) == answer_to(job)


# Each key of a job, at each stage


JOB_KEYS: dict[str, Callable[[Job, str], str]] = {
    "record": lambda job, _: job_key(job.id),
    "journal": lambda job, _: journal_key(job.id),
    "result": lambda job, _: result_key(job.id),
    "reply stream": lambda _, client: reply_key(client),
}


async def outcome(awaitable: Awaitable[Any]) -> Any:
    """What came of it within the patience: a value or an error of ours."""
    try:
        return await asyncio.wait_for(awaitable, PATIENCE_S)
    except TimeoutError:
        raise AssertionError("it hangs") from None
    except InferfleetError as error:
        return error


@pytest.mark.parametrize("stage", ["queued", "running", "handed over", "ended"])
@pytest.mark.parametrize("key", JOB_KEYS)
async def test_a_key_that_is_gone_is_an_end_or_an_error_for_all_who_look(
    watchful: Fleet,
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    pool: str,
    key: str,
    stage: str,
) -> None:
    # Given a job at that stage, and somebody who waits for it and somebody who reads it
    worker = await start_worker() if stage != "queued" else None
    job = await watchful.submit(slow_chat(tokens=250, step_s=0.01), pool=pool, stream=True)
    looking = [
        asyncio.create_task(outcome(watchful.wait(job))),
        asyncio.create_task(outcome(read_all(watchful.stream(job)))),
    ]
    await watchful.get(job)
    if worker is not None:
        await until_tokens(watchful, job, 5)
    if stage == "handed over":
        assert worker is not None
        await worker.stop()
    if stage == "ended":
        await asyncio.gather(*looking)

    # When the key goes
    await store.delete(JOB_KEYS[key](job, f"{pool}-c"))
    if stage in ("queued", "handed over"):
        await start_worker()

    # Then everybody comes to an end: of the answer, or an error that says what is missing
    waited, read = await asyncio.gather(*looking)
    later = [
        await outcome(watchful.wait(job)),
        await outcome(read_all(watchful.stream(job))),
        await outcome(fleet.wait(job)),
    ]
    for result in (waited, later[0], later[2]):
        match result:
            case Result():
                assert result.text == answer_to(job)
            case JobDataLostError():
                assert result.missing == key
            case _:
                assert isinstance(result, JobNotFoundError)
                assert key == "record"
    for entries in (read, later[1]):
        match entries:
            case list():
                assert text_of(since_the_restart(entries)) == answer_to(job)
            case JobDataLostError():
                assert entries.missing == key
            case _:
                assert isinstance(entries, JobNotFoundError)
                assert key == "record"
    if key == "result" and stage == "ended":
        assert isinstance(later[0], JobDataLostError)
        assert isinstance(await outcome(watchful.get(job)), JobDataLostError)
    if key == "journal" and stage == "ended":
        assert isinstance(later[1], JobDataLostError)
        assert isinstance(later[0], Result)


async def test_a_result_that_goes_before_it_was_read_is_an_error_for_whoever_waits(
    watchful: Fleet, store: aioredis.Redis, pool: str
) -> None:
    """Its reply line came, or did not; the record alone says that there was one."""
    job = await watchful.submit("hello", pool=pool)
    waiting = asyncio.create_task(outcome(watchful.wait(job)))
    reading = asyncio.create_task(outcome(read_all(watchful.stream(job))))
    await watchful.get(job)
    await store.hset(job_key(job.id), "state", "succeeded")
    told = await waiting
    assert isinstance(told, JobDataLostError)
    assert "the result of job" in str(told)
    read = await reading
    assert isinstance(read, JobDataLostError)
    assert "the journal of job" in str(read)


async def test_a_record_that_does_not_come_back_is_an_error_for_whoever_waits(
    watchful: Fleet, store: aioredis.Redis, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "RECORD_GRACE_S", 2 * CHECK_S)
    job = await watchful.submit("hello", pool=pool)
    looking = [
        asyncio.create_task(outcome(watchful.wait(job))),
        asyncio.create_task(outcome(read_all(watchful.stream(job)))),
    ]
    await watchful.get(job)
    await store.delete(job_key(job.id), journal_key(job.id))
    assert [type(told) for told in await asyncio.gather(*looking)] == [JobNotFoundError] * 2


@pytest.mark.parametrize("kept", [1, 2])
async def test_a_reader_of_a_journal_that_lacks_its_beginning_is_told(
    watchful: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str, kept: int
) -> None:
    await start_worker()
    job = await watchful.submit(slow_chat(tokens=60, step_s=0.01), pool=pool, stream=True)
    await watchful.wait(job, timeout_s=PATIENCE_S)
    await store.xtrim(journal_key(job.id), maxlen=kept, approximate=False)
    assert isinstance((await journal_of(store, job))[-1], FinishedEntry)
    told = await outcome(read_all(watchful.stream(job)))
    assert isinstance(told, JobDataLostError)


async def test_the_commands_do_not_print_an_empty_success(
    fleet: Fleet, inferfleet: RunCommand, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit("hello", pool=pool)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    await store.delete(result_key(job.id))
    for command in (
        ["get", job.id],
        ["get", job.id, "--wait"],
        ["stream", job.id],
        ["get", job.id, "--json"],
    ):
        ended = await inferfleet(*command)
        assert ended.code == 1
        assert f"the result of job {job.id} is gone" in ended.err


# Each key of a session, at each stage


SESSION_KEYS = {
    "record": session_key,
    "lane": lane_key,
    "payloads": payloads_key,
    "turns": turns_key,
    "state": state_key,
}


@pytest.mark.parametrize("stage", ["queued", "running", "ended"])
@pytest.mark.parametrize("key", SESSION_KEYS)
async def test_a_sessions_key_that_is_gone_leaves_no_turn_without_an_end(
    watchful: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str, key: str, stage: str
) -> None:
    # Given a session with a history and a state, and turns at that stage
    session = watchful.session(f"s-{uuid4()}")
    worker = await start_worker()
    told = await session.send("one", pool=pool, state_patch={"step": 1})
    said = (await watchful.wait(told, timeout_s=PATIENCE_S)).text
    if stage == "queued":
        await worker.stop()
    # Slow where the first turn must still run when the key goes.
    body = {"simulated": {"tokens": 30, "step_delay_s": 0.1 if stage == "running" else 0.01}}
    turns = [await session.send(f"turn {n}", pool=pool, body=body, stream=True) for n in range(3)]
    if stage == "running":
        await until_tokens(watchful, turns[0], 2)
    if stage == "ended":
        await watchful.wait_many(turns, timeout_s=PATIENCE_S)

    # When the key goes, and one more turn comes
    await store.delete(SESSION_KEYS[key](session.id))
    turns.append(await session.send("one more", pool=pool, state_patch={"step": 2}))
    if stage == "queued":
        await start_worker()

    # Then each turn ends, and what succeeded was said to the history that is there
    results = await asyncio.wait_for(watchful.wait_many(turns), PATIENCE_S)
    for result in results:
        if result.error is not None:
            assert (result.state, result.error.code) == (JobState.FAILED, "session_conflict")
            assert "gone" in result.error.message
    if key == "turns" and stage != "running":
        assert {result.state for result in results[-1:]} == {JobState.FAILED}
        with pytest.raises(SessionError, match="turns by its record"):
            await session.history()
    if key == "state":
        with pytest.raises(SessionError, match="its state is gone"):
            await session.state()
    if key in ("lane", "record") and stage == "queued":
        # Nothing of the answers was lost.
        history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": said}]
        first = {**body, "messages": [*history, {"role": "user", "content": "turn 0"}]}
        assert results[0].error is not None or results[0].text == expected_text(turns[0].endpoint, first)
    if key == "payloads" and stage != "ended":
        assert [result.state for result in results[1:3]] == [JobState.FAILED] * 2


@pytest.mark.parametrize("key", SESSION_KEYS)
async def test_a_sessions_key_that_is_gone_needs_no_later_turn_to_end_those_that_wait(
    watchful: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str, key: str
) -> None:
    await start_worker()
    session = watchful.session(f"s-{uuid4()}")
    body = {"simulated": {"tokens": 30, "step_delay_s": 0.01}}
    turns = [await session.send(f"turn {n}", pool=pool, body=body, stream=True) for n in range(3)]
    await until_tokens(watchful, turns[0], 2)
    await store.delete(SESSION_KEYS[key](session.id))
    results = await asyncio.wait_for(watchful.wait_many(turns), PATIENCE_S)
    expected = JobState.FAILED if key == "payloads" else JobState.SUCCEEDED
    assert [result.state for result in results] == [JobState.SUCCEEDED, expected, expected]
    assert len(await session.turns()) == (1 if key == "payloads" else 3)


async def test_a_session_that_lost_its_turns_works_again_once_it_is_deleted(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    session: Session = fleet.session(f"s-{uuid4()}")
    await fleet.wait(await session.send("one", pool=pool), timeout_s=PATIENCE_S)
    await store.delete(turns_key(session.id))
    failed = await fleet.wait(await session.send("two", pool=pool), timeout_s=PATIENCE_S)
    assert failed.state is JobState.FAILED
    with pytest.raises(SessionError):
        await session.export()
    assert await session.delete()
    again = await fleet.wait(await session.send("three", pool=pool), timeout_s=PATIENCE_S)
    assert again.state is JobState.SUCCEEDED


# A Redis that throws keys away


@pytest.fixture
async def limits(store: aioredis.Redis, real_redis: None) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Set what Redis does when its memory is full; it is not full here."""

    async def limit(policy: str, *, maxmemory: str = "1gb") -> None:
        await store.config_set("maxmemory", maxmemory)
        await store.config_set("maxmemory-policy", policy)

    yield limit
    await limit("noeviction", maxmemory="0")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "volatile-lfu", "allkeys-random"])
async def test_a_redis_that_may_evict_is_refused_by_client_and_worker_unless_allowed(
    connect: Connect,
    start_worker: StartWorker,
    limits: Callable[..., Awaitable[None]],
    inferfleet: RunCommand,
    pool: str,
    policy: str,
) -> None:
    await limits(policy)
    with pytest.raises(ConfigurationError, match=f"maxmemory-policy '{policy}'.*INFERFLEET_ALLOW_EVICTION"):
        async with connect():
            pass
    refused = await start_worker()
    with pytest.raises(ConfigurationError, match="noeviction"):
        await asyncio.wait_for(refused.running, PATIENCE_S)
    async with connect(allow_eviction=True) as fleet:
        await fleet.declare_pool(pool)
        await start_worker(allow_eviction=True)
        job = await fleet.submit(chat(), pool=pool)
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    command = await inferfleet("get", job.id)
    assert (command.code, "noeviction" in command.err) == (2, True)
    allowed = await inferfleet("get", job.id, environment={"INFERFLEET_ALLOW_EVICTION": "true"})
    assert allowed.code == 0


@pytest.mark.parametrize(("policy", "maxmemory"), [("noeviction", "1gb"), ("allkeys-lru", "0")])
async def test_a_redis_that_never_evicts_is_taken(
    connect: Connect, limits: Callable[..., Awaitable[None]], policy: str, maxmemory: str
) -> None:
    await limits(policy, maxmemory=maxmemory)
    async with connect() as fleet:
        assert await fleet.workers() is not None


class Managed:
    """A client of a service that forbids some commands."""

    def __init__(self, *, info: bool, config: bool, policy: str = "volatile-lru") -> None:
        self._allowed = {"info": info, "config": config}
        self._policy = policy

    async def info(self, section: str) -> dict[str, Any]:
        self._check("info")
        return {"maxmemory": 1024, "maxmemory_policy": self._policy}

    async def config_get(self, pattern: str) -> dict[str, str]:
        self._check("config")
        return {"maxmemory": "1024", "maxmemory-policy": self._policy}

    def _check(self, command: str) -> None:
        if not self._allowed[command]:
            raise NoPermissionError(f"no permissions to run the '{command}' command")


@pytest.mark.parametrize(("info", "config"), [(True, False), (False, True)])
async def test_one_of_two_commands_is_enough_to_know(info: bool, config: bool) -> None:
    with pytest.raises(ConfigurationError, match="volatile-lru"):
        await refuse_eviction(Managed(info=info, config=config), allowed=False)  # type: ignore[arg-type]
    await refuse_eviction(Managed(info=info, config=config), allowed=True)  # type: ignore[arg-type]


async def test_a_redis_that_does_not_say_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    await refuse_eviction(Managed(info=False, config=False), allowed=False)  # type: ignore[arg-type]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "noeviction" in caplog.text


# A Redis that comes back with a clock behind that of the one before: ids of lines are times

FAR_AHEAD = "99999999999999-0"


async def test_a_stream_goes_on_where_the_clock_of_redis_has_gone_back(
    watchful: Fleet, connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    job = await watchful.submit(slow_chat(tokens=80, step_s=0.03), pool=pool, stream=True)
    seen: list[JournalLine] = []

    async def follow() -> None:
        async with aclosing(watchful.stream(job)) as lines:
            async for line in lines:
                seen.append(line)  # noqa: PERF401 - they are looked at as they come

    following = asyncio.create_task(follow())
    await until_tokens(watchful, job, 10)
    queued = QueuedEntry(at=job.submitted_at)
    await store.xadd(journal_key(job.id), {ENTRY_FIELD: queued.model_dump_json()}, id=FAR_AHEAD)

    async def has_seen_it() -> bool:
        return any(line.id.startswith(FAR_AHEAD) for line in seen)

    await eventually(has_seen_it)
    await store.delete(journal_key(job.id), job_key(job.id))
    await asyncio.wait_for(following, PATIENCE_S)
    entries = [line.entry for line in seen]
    assert text_of(entries) == answer_to(job)
    assert isinstance(entries[-1], FinishedEntry)
    # Whoever comes back with a place of the journal before gets the rest, too.
    position = next(number for number, line in enumerate(seen) if line.id.startswith(FAR_AHEAD))
    async with connect() as other:
        rest = await read_all(other.stream(job, after=seen[position].id))
    assert text_of(rest) == text_of(entries[position + 1 :])
    assert isinstance(rest[-1], FinishedEntry)


async def waited(client: Fleet, pool: str) -> None:
    """Wait for a job that ends after the wait has begun."""
    job = await client.submit(slow_chat(tokens=4, step_s=0.1), pool=pool)
    await client.wait(job, timeout_s=PATIENCE_S)


async def test_waits_are_told_again_where_the_clock_of_redis_has_gone_back(
    connect: Connect, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    """They end with a look at the record in any case; sooner when the line that tells of the end is read."""
    await start_worker()
    async with connect(client_id=f"{pool}-c", state_check_interval_s=3.0) as client:
        await client.declare_pool(pool)
        await store.xadd(reply_key(f"{pool}-c"), {"wake": ""}, id=FAR_AHEAD)
        await waited(client, pool)
        await store.delete(reply_key(f"{pool}-c"))

        async def soon() -> bool:
            began = time.monotonic()
            for _ in range(3):
                await waited(client, pool)
            return time.monotonic() - began < 3.0

        await eventually(soon)


async def test_a_failover_that_forgets_a_start_costs_no_token(
    watchful: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str, tmp_path: Path
) -> None:
    """The worker goes on, although the record says that nobody has begun the job."""
    job = Job(pool=pool, body=slow_chat(tokens=30, step_s=0.1), stream=True)
    await watchful.submit(job)
    accepted = {key: await store.dump(key) for key in (job_key(job.id), journal_key(job.id))}
    await start_worker(engine_args={**INSTANT, "token_log": str(tmp_path / "tokens.log")})
    await until_tokens(watchful, job, 5)
    for key, dump in accepted.items():
        assert dump is not None
        await store.restore(key, 0, dump, replace=True)

    result = await asyncio.wait_for(watchful.wait(job), PATIENCE_S)

    assert (result.state, result.text, result.attempts) == (JobState.SUCCEEDED, answer_to(job), 1)
    assert sum(map(int, (tmp_path / "tokens.log").read_text().split())) == 30
    assert text_of(await journal_of(store, job)) == answer_to(job)
