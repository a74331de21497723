"""What the records and journals of jobs need of Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis.exceptions import NoScriptError, ResponseError
from tests.contract.conftest import PATIENCE_S

from inferfleet.local.services import Services
from inferfleet.wire.redis.eviction import refuse_eviction
from inferfleet.wire.redis.script import LOADED

CLAIM = """
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('XADD', KEYS[2], '*', 'entry', ARGV[1] .. ':' .. attempt)
redis.call('EXPIRE', KEYS[1], 60)
redis.call('EXPIRE', KEYS[2], 60)
return {attempt, redis.call('HGET', KEYS[1], 'state')}
"""
RECORD, JOURNAL = "{job}:record", "{job}:journal"


async def test_a_script_runs_as_one_step_for_many_clients(
    contract_services: Services, store: aioredis.Redis
) -> None:
    clients = [aioredis.Redis.from_url(contract_services.redis_url) for _ in range(4)]
    answers = await asyncio.gather(
        *(client.eval(CLAIM, 2, RECORD, JOURNAL, f"w{i}") for i, client in enumerate(clients * 10))
    )
    for client in clients:
        await client.aclose()
    assert sorted(attempt for attempt, _ in answers) == list(range(1, 41))
    journal: Any = await store.xrange(JOURNAL)
    entries = [fields[b"entry"].split(b":")[1] for _, fields in journal]
    assert entries == [b"%d" % attempt for attempt in range(1, 41)]


async def test_a_missing_field_is_nil_in_a_script_and_none_outside(store: aioredis.Redis) -> None:
    assert await store.eval(CLAIM, 2, RECORD, JOURNAL, "w") == [1, None]
    found = await store.eval("return redis.call('HGET', KEYS[1], 'none') == false", 1, RECORD)
    assert found == 1


async def test_a_script_gives_its_keys_a_time_to_live(store: aioredis.Redis) -> None:
    await store.eval(CLAIM, 2, RECORD, JOURNAL, "w")
    assert 0 < await store.ttl(RECORD) <= 60
    assert 0 < await store.ttl(JOURNAL) <= 60


async def test_it_says_that_it_evicts_no_keys(
    store: aioredis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await refuse_eviction(store, allowed=False)
    assert not caplog.records


async def test_an_unknown_script_is_reported_as_such_and_can_be_loaded(store: aioredis.Redis) -> None:
    await store.script_flush()
    with pytest.raises(NoScriptError):
        await store.evalsha("0" * 40, 0)
    sha = await store.script_load(CLAIM)
    assert (await store.evalsha(sha, 2, RECORD, JOURNAL, "w"))[0] == 1


async def test_redis_knows_our_scripts_by_the_name_that_we_calculate(store: aioredis.Redis) -> None:
    for script in LOADED:
        assert await store.script_load(script.text) == script.sha


async def test_a_failing_command_in_a_pipeline_does_not_stop_the_others(store: aioredis.Redis) -> None:
    await store.set("text", "x")
    pipeline = store.pipeline(transaction=False)
    pipeline.set("before", 1)
    pipeline.hget("text", "field")
    pipeline.evalsha("0" * 40, 0)
    pipeline.get("before")
    before, wrong_type, no_script, after = await pipeline.execute(raise_on_error=False)
    assert (before, after) == (True, b"1")
    assert isinstance(wrong_type, ResponseError)
    assert isinstance(no_script, NoScriptError)


async def test_a_key_is_claimed_once_and_the_loser_learns_who_has_it(store: aioredis.Redis) -> None:
    claims = await asyncio.gather(
        *(store.set("idempotency", f"job-{i}", nx=True, get=True, ex=60) for i in range(5))
    )
    assert claims.count(None) == 1
    (owner,) = set(claims) - {None}
    assert await store.get("idempotency") == owner


async def test_a_blocked_read_of_many_streams_wakes_when_one_grows(
    contract_services: Services, store: aioredis.Redis
) -> None:
    reader = aioredis.Redis.from_url(contract_services.redis_url)
    streams: dict[Any, Any] = {f"stream:{i}": "0" for i in range(50)}
    read: Any = reader.xread(streams, block=int(PATIENCE_S * 1000))
    reading = asyncio.create_task(read)
    await _until_blocked(reading)
    await store.xadd("stream:7", {"entry": "{}"})
    ((stream, entries),) = dict(await reading).items()
    assert (stream, len(entries)) == (b"stream:7", 1)
    await reader.aclose()


async def test_a_read_from_the_last_id_misses_nothing(store: aioredis.Redis) -> None:
    first = await store.xadd("journal", {"entry": "1"})
    await store.xadd("journal", {"entry": "2"})
    await store.xadd("journal", {"entry": "3"})
    answer: Any = await store.xread({"journal": first}, block=1000)
    ((_, entries),) = dict(answer).items()
    assert [fields[b"entry"] for _, fields in entries] == [b"2", b"3"]


async def test_a_blocked_read_gives_up_after_its_time(store: aioredis.Redis) -> None:
    assert not await store.xread({"nothing": "$"}, block=20)


async def test_a_trimmed_stream_keeps_its_latest_entries(store: aioredis.Redis) -> None:
    for number in range(10):
        await store.xadd("replies", {"n": number}, maxlen=3, approximate=False)
    replies: Any = await store.xrange("replies")
    assert [fields[b"n"] for _, fields in replies] == [b"7", b"8", b"9"]


async def test_a_sorted_set_forgets_what_is_too_old(store: aioredis.Redis) -> None:
    """The list of workers: each is there once, with its last heartbeat."""
    for worker, seen_at in (("a", 1.5), ("b", 2), ("a", 30)):
        await store.zadd("workers", {worker: seen_at})
    assert await store.zremrangebyscore("workers", "-inf", 29) == 1
    assert await store.zrange("workers", 0, -1) == [b"a"]


async def _until_blocked(reading: asyncio.Task[object]) -> None:
    """Give the read time to reach the server; it must not have returned by then."""
    done, _ = await asyncio.wait([reading], timeout=0.1)
    assert not done
