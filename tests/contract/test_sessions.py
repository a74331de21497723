"""Sessions in Redis: lanes, fences, history, state. The same on every kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis

from inferfleet.schemas import Job, Usage
from inferfleet.schemas.job import OnBusy, new_job_id
from inferfleet.schemas.names import lane_key, payloads_key, session_key, state_key, turns_key
from inferfleet.schemas.session import Turn
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.attempts import Fence
from inferfleet.wire.pipeline import CommandPipeline
from inferfleet.wire.sessions import Appended, Begin, Entered, Entry, Payload, Replaced, Sessions
from inferfleet.wire.tasks import cancel_and_wait

SESSION = "s"
BUSY_TTL_S = 9000
IDLE_TTL_S = 100


class Conversation:
    """What producers and workers do to one session, in short words."""

    def __init__(self, store: aioredis.Redis, pipeline: CommandPipeline, **settings: Any) -> None:
        self._store = store
        self._pipeline = pipeline
        self.sessions = Sessions(
            pipeline=pipeline,
            settings=ServiceSettings(queued_ttl_s=BUSY_TTL_S, session_ttl_s=IDLE_TTL_S, **settings),
        )

    def with_settings(self, **settings: Any) -> Conversation:
        return Conversation(self._store, self._pipeline, **settings)

    async def enter(self, job: Job) -> Entered:
        return await self.sessions.enter(Payload(job, "client"))

    async def advance(self, job: Job, **more: Any) -> str | None:
        following = await self.sessions.advance(job, **more)
        return following.job.id if following else None

    async def begin(self, job: Job, attempt: int = 1) -> Begin:
        return (await self.sessions.begin(job, fence=_fence(job, attempt))).begin

    async def append(self, job: Job, attempt: int = 1, state: Any = None) -> Appended:
        return await self.sessions.append(
            job, fence=_fence(job, attempt), turn=turn_of(job), answer=b"answer", state=state
        )

    async def run(self, job: Job) -> str | None:
        """A whole turn, from the message in the queue to its end. Returns what runs next."""
        assert await self.begin(job) is Begin.BEGUN
        assert await self.append(job) is Appended.OK
        return await self.advance(job)

    async def history(self) -> list[str]:
        return [turn.job_id for turn in await self.sessions.turns(SESSION)]

    async def lifetimes(self) -> list[int]:
        """The rest of life in seconds of the session's record, turns and state."""
        return [await self._store.ttl(key(SESSION)) for key in (session_key, turns_key, state_key)]


@pytest.fixture
async def talk(store: aioredis.Redis) -> AsyncIterator[Conversation]:
    pipeline = CommandPipeline(store, patience_s=None)
    running = asyncio.create_task(pipeline.run())
    yield Conversation(store, pipeline)
    await cancel_and_wait(running)


def turn(**more: Any) -> Job:
    return Job(session_id=SESSION, body={"messages": [{"role": "user", "content": "hi"}]}, **more)


def turn_of(job: Job, *, tokens: int = 10, content: str = "yes") -> Turn:
    answer = {"role": "assistant", "content": content}
    return Turn(
        job_id=job.id,
        messages=(*job.body["messages"], answer),
        at=datetime.now(UTC),
        usage=Usage(prompt_tokens=5, completion_tokens=5),
        tokens=tokens,
    )


def _fence(job: Job, attempt: int) -> Fence:
    return Fence(f"{job.id}:{attempt}", attempt)


# Lanes


async def test_the_first_turn_runs_and_the_others_follow_in_their_order(
    talk: Conversation,
) -> None:
    turns = [turn() for _ in range(4)]
    assert [(await talk.enter(job)).entry for job in turns] == [Entry.RUN, *[Entry.WAIT] * 3]
    followers = [await talk.run(job) for job in turns]
    assert followers == [*(job.id for job in turns[1:]), None]
    assert await talk.history() == [job.id for job in turns]
    record = await talk.sessions.get(SESSION)
    assert record is not None
    assert (record.owner, record.waiting, record.turns, record.version) == (None, (), 4, 4)


async def test_turns_of_other_sessions_are_not_held_up(talk: Conversation) -> None:
    await talk.enter(turn())
    other = turn().model_copy(update={"session_id": "other"})
    assert (await talk.enter(other)).entry is Entry.RUN


async def test_entering_twice_changes_nothing(talk: Conversation) -> None:
    first, second = turn(), turn()
    assert [(await talk.enter(first)).entry for _ in range(2)] == [Entry.RUN] * 2
    assert [(await talk.enter(second)).entry for _ in range(2)] == [Entry.WAIT] * 2
    record = await talk.sessions.get(SESSION)
    assert record is not None
    assert record.waiting == (second.id,)


async def test_a_turn_that_is_not_to_wait_is_refused_and_leaves_nothing(talk: Conversation) -> None:
    first = turn()
    await talk.enter(first)
    refused = await talk.enter(turn(on_busy=OnBusy.REJECT))
    assert (refused.entry, refused.owner) == (Entry.BUSY, first.id)
    assert await talk.run(first) is None
    assert (await talk.enter(turn(on_busy=OnBusy.REJECT))).entry is Entry.RUN


async def test_a_turn_that_gives_up_its_place_is_passed_over(talk: Conversation) -> None:
    first, second, third = turn(), turn(), turn()
    for job in (first, second, third):
        await talk.enter(job)
    assert await talk.advance(second) is None
    assert await talk.run(first) == third.id


async def test_until_the_next_turn_is_published_its_predecessor_names_it_again(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.enter(second)
    assert await talk.run(first) == second.id
    assert await talk.advance(first) == second.id
    await talk.sessions.published(second)
    assert await talk.advance(first) is None


async def test_one_message_vouches_for_all_turns_that_cannot_be_published(talk: Conversation) -> None:
    first, second, third = turn(), turn(), turn()
    for job in (first, second, third):
        await talk.enter(job)
    await talk.run(first)
    assert await talk.advance(second, witness=first) == third.id
    assert await talk.advance(first) == third.id


async def test_whoever_waits_can_see_that_the_turn_in_front_is_not_published(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    assert (await talk.enter(second)).unpublished
    owner, payload = await talk.sessions.front(second)
    assert payload is not None
    assert (owner, payload.job, payload.reply_to) == (first.id, first, "client")
    await talk.sessions.published(first)
    assert await talk.sessions.front(second) == ("", None)
    assert not (await talk.enter(turn())).unpublished


@pytest.mark.parametrize("on_busy", OnBusy)
async def test_a_turn_that_was_never_published_is_handed_to_whoever_comes_after_the_grace(
    talk: Conversation, on_busy: OnBusy
) -> None:
    first = turn()
    impatient = talk.with_settings(turn_publish_grace_s=0.001)
    await impatient.enter(first)
    await asyncio.sleep(0.01)
    again = (await impatient.enter(turn(on_busy=on_busy))).again
    assert again is not None
    assert again.job == first
    assert (await talk.enter(turn(on_busy=on_busy))).again is None


# Attempts


async def test_a_turn_may_not_begin_while_another_owns_the_session(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.enter(second)
    assert await talk.begin(second) is Begin.TAKEN
    assert await talk.append(second) is Appended.TAKEN


async def test_a_turn_from_another_client_owns_the_session_from_its_beginning(talk: Conversation) -> None:
    foreign = turn()
    assert await talk.begin(foreign) is Begin.BEGUN
    assert (await talk.enter(turn())).entry is Entry.WAIT


async def test_only_the_latest_attempt_adds_the_turn(talk: Conversation) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job, attempt=1)
    await talk.begin(job, attempt=2)
    assert await talk.append(job, attempt=1) is Appended.FENCED
    assert await talk.append(job, attempt=2) is Appended.OK
    assert await talk.history() == [job.id]


async def test_an_attempt_that_slept_cannot_take_the_session_from_a_later_one(talk: Conversation) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job, attempt=2)
    assert await talk.begin(job, attempt=1) is Begin.FENCED
    assert await talk.append(job, attempt=2) is Appended.OK


async def test_a_turn_is_added_once_however_often_it_is_sent(talk: Conversation) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job)
    assert [await talk.append(job) for _ in range(3)] == [Appended.OK] * 3
    assert await talk.history() == [job.id]


async def test_the_next_attempt_finds_the_answer_of_one_that_added_its_turn_and_died(
    talk: Conversation,
) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job, attempt=1)
    await talk.append(job, attempt=1)
    begun = await talk.sessions.begin(job, fence=_fence(job, 2))
    assert (begun.begin, begun.answer) == (Begin.ANSWERED, b"answer")
    await talk.advance(job)
    following = turn()
    await talk.enter(following)
    assert await talk.begin(following) is Begin.BEGUN


async def test_a_worker_whose_session_redis_lost_adds_nothing_to_what_is_there_now(
    talk: Conversation, store: aioredis.Redis
) -> None:
    lost, new = turn(), turn()
    await talk.enter(lost)
    await talk.begin(lost)
    await store.flushall()
    assert await talk.append(lost) is Appended.TAKEN
    await talk.enter(new)
    assert await talk.append(lost) is Appended.TAKEN
    assert (await talk.enter(lost)).entry is Entry.WAIT
    assert await talk.run(new) == lost.id


# History


async def test_only_so_much_of_the_past_is_read_as_the_limit_needs(talk: Conversation) -> None:
    turns = [turn_of(turn(), content=str(number)) for number in range(300)]
    await talk.sessions.create(SESSION, turns, state=None, idle_ttl_s=None, max_history_tokens=None)
    everything = await talk.sessions.turns(SESSION)
    assert everything == tuple(turns)
    some = await talk.sessions.turns(SESSION, max_tokens=100)
    assert some == (turns[0], *turns[-64:])
    assert await talk.sessions.turns(SESSION, max_tokens=1_000_000) == everything


async def test_a_chain_of_tool_calls_is_read_from_its_beginning(talk: Conversation) -> None:
    first = turn_of(turn())
    results = [{"role": "tool", "tool_call_id": "c", "content": "1"}]
    chain = [turn_of(turn().model_copy(update={"body": {"messages": results}})) for _ in range(100)]
    await talk.sessions.create(
        SESSION, [first, first, *chain], state=None, idle_ttl_s=None, max_history_tokens=None
    )
    assert await talk.sessions.turns(SESSION, max_tokens=50) == (first, first, *chain)


async def test_a_turn_beyond_the_size_limit_is_refused(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.run(first)
    small = talk.with_settings(max_session_bytes=300)
    assert (await small.enter(second)).entry is Entry.TOO_LARGE
    assert (await small.sessions.enter(Payload(second, ""), admitted=True)).entry is Entry.RUN


async def test_the_state_counts_towards_the_size_limit(talk: Conversation) -> None:
    small = talk.with_settings(max_session_bytes=2000)
    assert await small.sessions.replace_state(SESSION, "x" * 2100, version=0) == (Replaced.TOO_LARGE, 0)
    assert await small.sessions.replace_state(SESSION, "x" * 1900, version=0) == (Replaced.OK, 1)
    assert (await small.enter(turn())).entry is Entry.TOO_LARGE


# State


async def test_a_state_is_replaced_only_at_the_version_its_writer_knows(talk: Conversation) -> None:
    assert await talk.sessions.state(SESSION) == (0, None)
    assert await talk.sessions.replace_state(SESSION, {"a": 1}, version=0) == (Replaced.OK, 1)
    assert await talk.sessions.replace_state(SESSION, {"a": 2}, version=0) == (Replaced.CONFLICT, 1)
    assert await talk.sessions.state(SESSION) == (1, {"a": 1})


async def test_of_many_writers_at_once_one_wins_also_if_they_write_the_same(talk: Conversation) -> None:
    outcomes = await asyncio.gather(
        *(talk.sessions.replace_state(SESSION, {"n": 1}, version=0) for _ in range(5))
    )
    assert sorted(outcomes) == [*[(Replaced.CONFLICT, 1)] * 4, (Replaced.OK, 1)]


async def test_a_state_and_its_turn_are_written_together_or_not_at_all(talk: Conversation) -> None:
    job = turn()
    await talk.enter(job)
    await talk.begin(job)
    await talk.sessions.replace_state(SESSION, "theirs", version=0)
    assert await talk.append(job, state=(0, "ours")) is Appended.STATE_CONFLICT
    assert await talk.history() == []
    assert await talk.append(job, state=(1, "ours")) is Appended.OK
    assert await talk.sessions.state(SESSION) == (2, "ours")
    assert await talk.history() == [job.id]


# Lifetimes


async def test_a_busy_session_keeps_its_history_and_state_until_the_turn_is_done(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.run(first)
    await talk.sessions.replace_state(SESSION, 1, version=0)
    assert max(await talk.lifetimes()) <= IDLE_TTL_S
    await talk.enter(second)
    assert min(await talk.lifetimes()) > BUSY_TTL_S - 10
    await talk.sessions.replace_state(SESSION, 2, version=1)
    assert min(await talk.lifetimes()) > BUSY_TTL_S - 10
    await talk.run(second)
    assert IDLE_TTL_S - 10 < min(await talk.lifetimes()) <= max(await talk.lifetimes()) <= IDLE_TTL_S


async def test_every_use_of_an_idle_session_gives_all_of_it_its_whole_life_again(
    talk: Conversation, store: aioredis.Redis
) -> None:
    job = turn()
    await talk.enter(job)
    await talk.run(job)
    await talk.sessions.replace_state(SESSION, 1, version=0)

    async def age() -> None:
        for key in (session_key, turns_key, state_key):
            await store.expire(key(SESSION), 5)

    await age()
    await talk.sessions.replace_state(SESSION, 2, version=1)
    assert min(await talk.lifetimes()) > IDLE_TTL_S - 10
    await age()
    await talk.sessions.configure(SESSION, idle_ttl_s=500, max_history_tokens=None)
    assert min(await talk.lifetimes()) > 490
    await age()
    again = turn()
    await talk.enter(again)
    await talk.advance(again)
    assert 490 < min(await talk.lifetimes()) <= 500


# Whole sessions


async def test_a_deleted_session_is_gone(talk: Conversation, store: aioredis.Redis) -> None:
    job = turn()
    await talk.enter(job)
    await talk.run(job)
    await talk.sessions.replace_state(SESSION, 1, version=0)
    assert await talk.sessions.delete(SESSION)
    assert not await talk.sessions.delete(SESSION)
    assert await talk.sessions.get(SESSION) is None
    assert await store.keys("*") == []


async def test_turns_that_run_and_wait_go_on_in_the_session_that_was_emptied(
    talk: Conversation, store: aioredis.Redis
) -> None:
    first, second, third = turn(), turn(), turn()
    await talk.enter(first)
    await talk.run(first)
    await talk.enter(second)
    await talk.enter(third)
    await talk.begin(second)
    assert await talk.sessions.delete(SESSION)
    assert await talk.append(second) is Appended.OK
    assert await talk.advance(second) == third.id
    assert await talk.run(third) is None
    record = await talk.sessions.get(SESSION)
    assert record is not None
    assert (await talk.history(), record.turns) == ([second.id, third.id], 2)
    assert not await store.exists(lane_key(SESSION), payloads_key(SESSION))


async def test_a_session_is_made_once_from_its_turns(talk: Conversation) -> None:
    turns = tuple(turn_of(turn(), content=str(number)) for number in range(2500))
    made = {"state": {"a": [1]}, "idle_ttl_s": 60, "max_history_tokens": 7}
    assert await talk.sessions.create(SESSION, turns, **made)
    assert not await talk.sessions.create(SESSION, turns, **made)
    assert await talk.sessions.turns(SESSION) == turns
    assert await talk.sessions.state(SESSION) == (1, {"a": [1]})
    record = await talk.sessions.get(SESSION)
    assert record is not None
    assert (record.turns, record.idle_ttl_s, record.max_history_tokens) == (2500, 60, 7)


async def test_sessions_are_listed_up_to_a_limit(talk: Conversation, store: aioredis.Redis) -> None:
    for number in range(5):
        await talk.enter(turn().model_copy(update={"session_id": f"s-{number}", "id": new_job_id()}))
    await store.set("inferfleet:session:{not}:state", 1)
    assert await talk.sessions.list(limit=100) == [f"s-{number}" for number in range(5)]
    assert len(await talk.sessions.list(limit=3)) == 3
