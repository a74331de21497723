"""Attempts, history, state and lifetimes of sessions in Redis. The same on every kind of store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.contract.conversation import BUSY_TTL_S, IDLE_TTL_S, SESSION, Conversation, fence_of, turn, turn_of

from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import (
    job_key,
    lane_key,
    payloads_key,
    session_key,
    state_key,
    turns_key,
)
from inferfleet.wire.redis.session_histories import AppendStatus, BeginStatus
from inferfleet.wire.redis.session_keys import CALL_TTL_S
from inferfleet.wire.redis.session_lanes import EnterStatus
from inferfleet.wire.redis.session_records import ReplaceStatus

pytestmark = pytest.mark.store


async def test_a_turn_may_not_begin_while_another_owns_the_session(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.enter(second)
    assert await talk.begin(second) is BeginStatus.TAKEN
    assert await talk.append(second) is AppendStatus.TAKEN


async def test_a_turn_from_another_client_owns_the_session_from_its_beginning(talk: Conversation) -> None:
    foreign = turn()
    assert await talk.begin(foreign) is BeginStatus.BEGUN
    assert (await talk.enter(turn())).status is EnterStatus.WAIT


async def test_only_the_latest_attempt_adds_the_turn(talk: Conversation) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job, attempt=1)
    await talk.begin(job, attempt=2)
    assert await talk.append(job, attempt=1) is AppendStatus.FENCED
    assert await talk.append(job, attempt=2) is AppendStatus.OK
    assert await talk.history() == [job.id]


async def test_an_attempt_that_slept_cannot_take_the_session_from_a_later_one(talk: Conversation) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job, attempt=2)
    assert await talk.begin(job, attempt=1) is BeginStatus.FENCED
    assert await talk.append(job, attempt=2) is AppendStatus.OK


async def test_a_turn_is_added_once_however_often_it_is_sent(talk: Conversation) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job)
    assert [await talk.append(job) for _ in range(3)] == [AppendStatus.OK] * 3
    assert await talk.history() == [job.id]


async def test_the_next_attempt_finds_the_answer_of_one_that_added_its_turn_and_died(
    talk: Conversation,
) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job, attempt=1)
    await talk.append(job, attempt=1)
    begun = await talk.begun(job, attempt=2)
    assert (begun.status, begun.answer) == (BeginStatus.ANSWERED, b"answer")
    await talk.advance(job)
    following = turn()
    await talk.enter(following)
    assert await talk.begin(following) is BeginStatus.BEGUN


async def test_a_worker_whose_session_redis_lost_adds_nothing_to_what_is_there_now(
    talk: Conversation, store: aioredis.Redis
) -> None:
    lost, new = turn(), turn()
    await talk.enter(lost)
    await talk.begin(lost)
    await store.flushall()
    assert await talk.append(lost) is AppendStatus.TAKEN
    await talk.enter(new)
    assert await talk.append(lost) is AppendStatus.TAKEN
    assert (await talk.enter(lost)).status is EnterStatus.WAIT
    assert await talk.run(new) == lost.id


# History


async def test_only_so_much_of_the_past_is_read_as_the_limit_needs(talk: Conversation) -> None:
    turns = [turn_of(turn(), content=str(number)) for number in range(300)]
    await talk.records.create(SESSION, turns, state=None, idle_ttl_s=None, max_history_tokens=None)
    everything = await talk.histories.turns(SESSION)
    assert everything == tuple(turns)
    some = await talk.histories.turns(SESSION, max_tokens=100)
    assert some == (turns[0], *turns[-64:])
    assert await talk.histories.turns(SESSION, max_tokens=1_000_000) == everything


async def test_a_chain_of_tool_calls_is_read_from_its_beginning(talk: Conversation) -> None:
    first = turn_of(turn())
    results = [{"role": "tool", "tool_call_id": "c", "content": "1"}]
    chain = [turn_of(turn().model_copy(update={"body": {"messages": results}})) for _ in range(100)]
    await talk.records.create(
        SESSION, [first, first, *chain], state=None, idle_ttl_s=None, max_history_tokens=None
    )
    assert await talk.histories.turns(SESSION, max_tokens=50) == (first, first, *chain)


async def test_a_turn_beyond_the_size_limit_is_refused(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.run(first)
    small = talk.with_settings(max_session_bytes=300)
    assert (await small.enter(second)).status is EnterStatus.TOO_LARGE
    assert (await small.enter(second, admitted=True)).status is EnterStatus.RUN


async def test_the_state_counts_towards_the_size_limit(talk: Conversation) -> None:
    small = talk.with_settings(max_session_bytes=2000)
    assert await small.records.replace_state(SESSION, "x" * 2100, version=0) == (ReplaceStatus.TOO_LARGE, 0)
    assert await small.records.replace_state(SESSION, "x" * 1900, version=0) == (ReplaceStatus.OK, 1)
    assert (await small.enter(turn())).status is EnterStatus.TOO_LARGE


# State


async def test_a_state_is_replaced_only_at_the_version_its_writer_knows(talk: Conversation) -> None:
    assert await talk.records.state(SESSION) == (0, None)
    assert await talk.records.replace_state(SESSION, {"a": 1}, version=0) == (ReplaceStatus.OK, 1)
    assert await talk.records.replace_state(SESSION, {"a": 2}, version=0) == (ReplaceStatus.CONFLICT, 1)
    assert await talk.records.state(SESSION) == (1, {"a": 1})


async def test_of_many_writers_at_once_one_wins_also_if_they_write_the_same(talk: Conversation) -> None:
    outcomes = await asyncio.gather(
        *(talk.records.replace_state(SESSION, {"n": 1}, version=0) for _ in range(5))
    )
    assert sorted(outcomes) == [*[(ReplaceStatus.CONFLICT, 1)] * 4, (ReplaceStatus.OK, 1)]


async def test_a_state_and_its_turn_are_written_together_or_not_at_all(talk: Conversation) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job)
    await talk.records.replace_state(SESSION, "theirs", version=0)
    assert await talk.append(job, state=(0, "ours")) is AppendStatus.STATE_CONFLICT
    assert await talk.history() == []
    assert await talk.append(job, state=(1, "ours")) is AppendStatus.OK
    assert await talk.records.state(SESSION) == (2, "ours")
    assert await talk.history() == [job.id]


# Lifetimes


async def test_a_busy_session_keeps_its_history_and_state_until_the_turn_is_done(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.run(first)
    await talk.records.replace_state(SESSION, 1, version=0)
    assert max(await talk.lifetimes()) <= IDLE_TTL_S
    await talk.enter(second)
    assert min(await talk.lifetimes()) > BUSY_TTL_S - 10
    await talk.records.replace_state(SESSION, 2, version=1)
    assert min(await talk.lifetimes()) > BUSY_TTL_S - 10
    await talk.run(second)
    assert IDLE_TTL_S - 10 < min(await talk.lifetimes()) <= max(await talk.lifetimes()) <= IDLE_TTL_S


async def test_every_use_of_an_idle_session_gives_all_of_it_its_whole_life_again(
    talk: Conversation, store: aioredis.Redis
) -> None:
    job = turn()
    await talk.enter(job)
    await talk.run(job)
    await talk.records.replace_state(SESSION, 1, version=0)

    async def age() -> None:
        for key in (session_key, turns_key, state_key):
            await store.expire(key(SESSION), 5)

    await age()
    await talk.records.replace_state(SESSION, 2, version=1)
    assert min(await talk.lifetimes()) > IDLE_TTL_S - 10
    await age()
    await talk.records.configure(SESSION, idle_ttl_s=500, max_history_tokens=None)
    assert min(await talk.lifetimes()) > 490
    await age()
    again = turn()
    await talk.enter(again)
    await talk.advance(again)
    assert 490 < min(await talk.lifetimes()) <= 500


async def test_no_step_of_a_turn_shortens_the_life_of_its_session(
    talk: Conversation, store: aioredis.Redis
) -> None:
    long_s = 10 * BUSY_TTL_S
    job = turn()
    await talk.records.replace_state(SESSION, 1, version=0)
    await talk.enter(job)
    await talk.run(job)
    await talk.records.configure(SESSION, idle_ttl_s=long_s, max_history_tokens=None)
    again = turn()
    await talk.enter(again)
    assert min(await talk.lifetimes()) > BUSY_TTL_S + 10
    await talk.begin(again)
    assert min(await talk.lifetimes()) > BUSY_TTL_S + 10
    await talk.append(again)
    assert min(await talk.lifetimes()) > BUSY_TTL_S + 10
    await talk.advance(again)
    assert long_s - 100 < min(await talk.lifetimes()) <= long_s


async def test_a_turn_that_runs_keeps_its_session_and_the_record_of_its_message_alive(
    talk: Conversation, store: aioredis.Redis
) -> None:
    first, second = turn(), turn()
    await talk.records.replace_state(SESSION, 1, version=0)
    await talk.enter(first)
    await talk.enter(second)
    await talk.run(first)
    await talk.begin(second, witness=first)
    kept = [key(SESSION) for key in (session_key, payloads_key, turns_key, state_key)]
    for key in (*kept, job_key(first.id)):
        await store.expire(key, 5)
    await talk.histories.renew(second, fence=fence_of(second, 2), witness=first)
    assert max(await talk.lifetimes()) <= 5
    await talk.histories.renew(second, fence=fence_of(second, 1), witness=first)
    assert min([await store.ttl(key) for key in (*kept, job_key(first.id))]) > BUSY_TTL_S - 100


# Whole sessions


@pytest.fixture
def resent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call has the name of the first, as if it were sent again after all that others did meanwhile."""
    monkeypatch.setattr("inferfleet.wire.redis.session_keys.new_token", lambda: "the call")


@pytest.mark.usefixtures("resent")
async def test_a_deletion_that_is_sent_twice_leaves_what_was_made_since(talk: Conversation) -> None:
    job, later = turn(), turn()
    await talk.enter(job)
    await talk.run(job)
    assert await talk.records.delete(SESSION)
    await talk.enter(later)
    await talk.run(later)
    assert await talk.records.delete(SESSION)
    assert await talk.history() == [later.id]


@pytest.mark.usefixtures("resent")
async def test_an_import_that_is_sent_twice_does_not_bring_a_deleted_session_back(
    talk: Conversation, store: aioredis.Redis
) -> None:
    made: dict[str, Any] = {"state": None, "idle_ttl_s": None, "max_history_tokens": None}
    assert await talk.records.create(SESSION, [turn_of(turn())], **made)
    assert await talk.records.create(SESSION, [turn_of(turn())], **made)
    await store.delete(session_key(SESSION), turns_key(SESSION))
    assert await talk.records.create(SESSION, [turn_of(turn())], **made)
    assert await talk.records.get(SESSION) is None


@pytest.mark.usefixtures("resent")
async def test_settings_that_are_sent_twice_do_not_undo_later_ones(
    talk: Conversation, store: aioredis.Redis
) -> None:
    await talk.records.configure(SESSION, idle_ttl_s=10, max_history_tokens=None)
    await store.hset(session_key(SESSION), "idle_ttl_s", 20)
    await talk.records.configure(SESSION, idle_ttl_s=10, max_history_tokens=None)
    record = await talk.records.get(SESSION)
    assert record is not None
    assert record.idle_ttl_s == 20


async def test_a_deleted_session_is_gone(talk: Conversation, store: aioredis.Redis) -> None:
    job = turn()
    await talk.enter(job)
    await talk.run(job)
    await talk.records.replace_state(SESSION, 1, version=0)
    assert await talk.records.delete(SESSION)
    assert not await talk.records.delete(SESSION)
    assert await talk.records.get(SESSION) is None
    left = (key(SESSION) for key in (session_key, lane_key, payloads_key, turns_key, state_key))
    assert not await store.exists(*left)


async def test_turns_that_run_and_wait_go_on_and_do_not_bring_their_session_back(
    talk: Conversation, store: aioredis.Redis
) -> None:
    first, second, third = turn(), turn(), turn()
    await talk.records.configure(SESSION, idle_ttl_s=10 * CALL_TTL_S, max_history_tokens=1)
    await talk.enter(first)
    await talk.run(first)
    await talk.enter(second)
    await talk.enter(third)
    await talk.begin(second)
    assert await talk.records.delete(SESSION)
    assert not await talk.records.delete(SESSION)
    assert await talk.records.get(SESSION) is None
    for _ in range(2):
        assert await talk.append(second, state=(0, "kept")) is AppendStatus.OK
    # Its worker died before its end.
    assert await talk.begin(second, 2) is BeginStatus.ANSWERED
    assert await talk.advance(second) == third.id
    assert (await talk.begun(third)).max_history_tokens is None
    assert await talk.run(third) is None
    assert await talk.records.get(SESSION) is None
    assert await talk.records.list(limit=9) == []
    assert await talk.history() == []
    assert not await store.exists(*(key(SESSION) for key in (lane_key, payloads_key, turns_key, state_key)))
    assert 0 < await store.ttl(session_key(SESSION)) <= CALL_TTL_S


@pytest.mark.parametrize("waits", [False, True])
async def test_a_turn_begins_a_deleted_session_again_behind_those_that_go_on(
    talk: Conversation, waits: bool
) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.begin(first)
    assert await talk.records.delete(SESSION)
    if waits:
        await talk.enter(second)
        assert await talk.records.list(limit=9) == [SESSION]
    await talk.append(first)
    assert await talk.advance(first) == (second.id if waits else None)
    if not waits:
        await talk.enter(second)
    assert await talk.run(second) is None
    record = await talk.records.get(SESSION)
    assert record is not None
    assert (await talk.history(), record.turns) == ([second.id], 1)
    # Its life is that of any other.
    assert max(await talk.lifetimes()) <= IDLE_TTL_S


async def test_a_session_is_made_from_turns_while_those_of_the_deleted_one_go_on(
    talk: Conversation, store: aioredis.Redis
) -> None:
    running, waiting, made = turn(), turn(), turn()
    await talk.enter(running)
    await talk.enter(waiting)
    await talk.begin(running)
    assert await talk.records.delete(SESSION)
    limits: dict[str, Any] = {"state": None, "idle_ttl_s": None, "max_history_tokens": None}
    assert await talk.records.create(SESSION, [turn_of(made)], **limits)
    assert not await talk.records.create(SESSION, [turn_of(made)], **limits)
    assert await talk.places() == (running.id, (waiting.id,))
    assert await store.ttl(session_key(SESSION)) > IDLE_TTL_S
    await talk.append(running)
    assert await talk.advance(running) == waiting.id
    assert await talk.run(waiting) is None
    assert await talk.history() == [made.id]


async def test_a_session_is_made_once_from_its_turns(talk: Conversation) -> None:
    turns = tuple(turn_of(turn(), content=str(number)) for number in range(2500))
    made: dict[str, Any] = {"state": {"a": [1]}, "idle_ttl_s": 60, "max_history_tokens": 7}
    assert await talk.records.create(SESSION, turns, **made)
    assert not await talk.records.create(SESSION, turns, **made)
    assert await talk.histories.turns(SESSION) == turns
    assert await talk.records.state(SESSION) == (1, {"a": [1]})
    record = await talk.records.get(SESSION)
    assert record is not None
    assert (record.turns, record.idle_ttl_s, record.max_history_tokens) == (2500, 60, 7)


async def test_sessions_are_listed_up_to_a_limit(talk: Conversation, store: aioredis.Redis) -> None:
    for number in range(5):
        await talk.enter(turn().model_copy(update={"session_id": f"s-{number}", "id": new_job_id()}))
    await store.set("inferfleet:session:{not}:state", 1)
    assert await talk.records.list(limit=100) == [f"s-{number}" for number in range(5)]
    assert len(await talk.records.list(limit=3)) == 3
