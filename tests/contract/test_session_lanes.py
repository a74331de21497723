"""Lanes of sessions in Redis. The same on every kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.contract.conversation import BUSY_TTL_S, SESSION, Conversation, fence_of, turn

from inferfleet.schemas import Job
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.schemas.job import OnBusy
from inferfleet.schemas.names import (
    job_key,
    lane_key,
    payloads_key,
    pool_key,
    session_key,
    state_key,
    turns_key,
    waiting_turns_key,
)
from inferfleet.wire.redis.job_reading import Held
from inferfleet.wire.redis.pool_limits import ENTERING_S
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_histories import AppendStatus, BeginStatus
from inferfleet.wire.redis.session_lanes import EnterStatus, Payload, Withdrawn

pytestmark = pytest.mark.store


async def test_the_first_turn_runs_and_the_others_follow_in_their_order(
    talk: Conversation,
) -> None:
    turns = [turn() for _ in range(4)]
    assert [(await talk.enter(job)).status for job in turns] == [EnterStatus.RUN, *[EnterStatus.WAIT] * 3]
    followers = [await talk.run(job) for job in turns]
    assert followers == [*(job.id for job in turns[1:]), None]
    assert await talk.history() == [job.id for job in turns]
    record = await talk.records.get(SESSION)
    assert record is not None
    assert (record.owner, record.waiting, record.turns, record.version) == (None, (), 4, 4)


async def test_turns_of_other_sessions_are_not_held_up(talk: Conversation) -> None:
    await talk.enter(turn())
    other = turn().model_copy(update={"session_id": "other"})
    assert (await talk.enter(other)).status is EnterStatus.RUN


async def test_entering_twice_changes_nothing(talk: Conversation) -> None:
    first, second = turn(), turn()
    assert [(await talk.enter(first)).status for _ in range(2)] == [EnterStatus.RUN] * 2
    assert [(await talk.enter(second)).status for _ in range(2)] == [EnterStatus.WAIT] * 2
    record = await talk.records.get(SESSION)
    assert record is not None
    assert record.waiting == (second.id,)


async def test_a_turn_that_is_not_to_wait_is_refused_and_leaves_nothing(talk: Conversation) -> None:
    first = turn()
    await talk.enter(first)
    refused = await talk.enter(turn(on_busy=OnBusy.REJECT))
    assert (refused.status, refused.owner) == (EnterStatus.BUSY, first.id)
    assert await talk.run(first) is None
    assert (await talk.enter(turn(on_busy=OnBusy.REJECT))).status is EnterStatus.RUN


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
    await talk.lanes.published(second)
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
    front = await talk.lanes.front(second)
    assert (front.owner, front.unpublished, front.placed, front.payload) == (first.id, True, True, None)
    payload = (await talk.lanes.front(second, take=first.id)).payload
    assert payload is not None
    assert (payload.job, payload.reply_to) == (first, "client")
    await talk.lanes.published(first)
    assert not (await talk.lanes.front(second)).unpublished
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


async def test_a_turn_that_another_jobs_message_carries_is_named_by_it_until_it_ends(
    talk: Conversation,
) -> None:
    first, second, third = turn(), turn(), turn()
    for job in (first, second, third):
        await talk.enter(job)
    assert await talk.run(first) == second.id
    await talk.lanes.published(second, witness=first)
    # Nobody needs to publish it, and nobody can take it back.
    assert not (await talk.enter(turn())).unpublished
    await talk.record(second, "queued", closed="call")
    assert (await talk.lanes.withdraw(second))[0] is Withdrawn.PUBLISHED
    assert await talk.advance(first) == second.id
    assert await talk.begin(second, witness=first) is BeginStatus.BEGUN
    assert await talk.advance(first) == second.id
    assert await talk.append(second) is AppendStatus.OK
    assert await talk.advance(second, witness=first) == third.id
    assert await talk.advance(first) == third.id
    await talk.lanes.published(third)
    assert await talk.advance(first) is None


async def test_a_carried_turn_that_another_ends_leaves_its_follower_to_the_message_that_carried_it(
    talk: Conversation,
) -> None:
    """Whoever ended it has no room to publish the next one either."""
    first, second, third, fourth = jobs = [turn() for _ in range(4)]
    for job in jobs:
        await talk.enter(job)
    await talk.run(first)
    await talk.lanes.published(second, witness=first)
    assert await talk.advance(second) == third.id
    assert await talk.advance(third) == fourth.id
    assert await talk.advance(second, witness=first) == fourth.id
    assert await talk.advance(first) == fourth.id


async def test_a_turn_that_got_a_message_of_its_own_while_it_ran_under_another_leaves_its_follower_to_it(
    talk: Conversation,
) -> None:
    """The worker that runs it has lost the message that carried it, and does not know."""
    first, second, third = jobs = [turn() for _ in range(3)]
    for job in jobs:
        await talk.enter(job)
    await talk.run(first)
    await talk.begin(second, witness=first)
    assert await talk.advance(first) == second.id
    await talk.lanes.published(second)
    assert await talk.advance(second, witness=first) == third.id
    assert await talk.advance(second) == third.id
    # Also if that worker has gone on under the message that it does not have.
    await talk.lanes.published(third, witness=first)
    assert await talk.advance(second) == third.id


async def carried(talk: Conversation) -> tuple[Job, Job]:
    """A turn that has ended, and the next one, which the first one's message carries."""
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.enter(second)
    await talk.run(first)
    await talk.lanes.published(second, witness=first)
    return first, second


async def test_a_turn_that_enters_a_session_that_redis_lost_is_named_by_the_message_that_carries_it(
    talk: Conversation, store: aioredis.Redis
) -> None:
    first, second = await carried(talk)
    await store.delete(*(key(SESSION) for key in (session_key, lane_key, payloads_key, turns_key, state_key)))
    assert (await talk.enter(second, admitted=True, witness=first)).status is EnterStatus.RUN
    assert await talk.advance(first) == second.id


async def test_a_turn_with_a_message_of_its_own_needs_no_other(talk: Conversation) -> None:
    first, second = await carried(talk)
    assert await talk.begin(second) is BeginStatus.BEGUN
    assert await talk.advance(first) is None


async def test_the_job_whose_message_carries_the_turn_in_front_does_not_wait_behind_it(
    talk: Conversation,
) -> None:
    """Its message would be acked, and the turn in front would have none."""
    first, second = await carried(talk)
    entered = await talk.enter(first, admitted=True)
    assert (entered.status, entered.again and entered.again.job) == (EnterStatus.WAIT, second)


async def test_a_waiting_job_that_ends_while_its_message_carries_the_turn_in_front_still_names_that_turn(
    talk: Conversation,
) -> None:
    """It was cancelled, and the worker that had its message is dead."""
    first, second = await carried(talk)
    await talk.enter(first, admitted=True)
    assert [await talk.advance(first) for _ in range(2)] == [second.id, second.id]
    assert await talk.places() == (second.id, ())


async def test_a_turn_whose_request_is_lost_ends_also_if_the_one_behind_it_is_published_first(
    talk: Conversation, store: aioredis.Redis
) -> None:
    """The worker that passed over it died before it could say so."""
    first, lost, third = turn(), turn(), turn()
    for job in (first, lost, third):
        await talk.enter(job)
    await store.hdel(payloads_key(SESSION), lost.id)
    assert await talk.run(first) == third.id
    await talk.record(lost, "queued")
    await talk.lanes.published(third)
    assert await talk.advance(first) is None
    assert (await talk.state(lost)) == "failed"
    # Unless it was submitted again.
    await talk.enter(lost)
    assert await talk.advance(first) is None
    assert (await talk.state(lost)) == "queued"


async def test_a_lane_moves_on_only_past_a_turn_that_has_ended(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    await talk.enter(second)
    for state in ("queued", "running"):
        await talk.record(first, state)
        with pytest.raises(ServiceUnreachableError, match="has not ended"):
            await talk.lanes.advance(first)
    assert await talk.advance(first) == second.id


async def test_an_end_that_was_sent_twice_does_not_move_a_later_turn(talk: Conversation) -> None:
    first, second = turn(), turn()
    await talk.enter(first)
    assert await talk.run(first) is None
    await talk.enter(second)
    assert await talk.advance(first) is None
    assert await talk.begin(second) is BeginStatus.BEGUN


# Copies of commands that were held up on their way


Leave = Callable[[Conversation, Job], Awaitable[None]]


async def _ended(talk: Conversation, job: Job) -> None:
    await talk.run(job)


async def _taken_back(talk: Conversation, job: Job) -> None:
    assert await talk.take_back(job) is Withdrawn.OVER


LEAVE = pytest.mark.parametrize("leave", [_ended, _taken_back])


@LEAVE
async def test_a_wish_to_run_that_arrives_once_its_turn_has_left_changes_nothing(
    talk: Conversation, leave: Leave
) -> None:
    job = turn()
    with talk.copies() as late:
        await talk.enter(job)
    await leave(talk, job)
    await talk.resend(late)
    assert await talk.places() == ("", ())
    # Nor behind another one.
    other = turn()
    await talk.enter(other)
    await talk.resend(late)
    assert await talk.places() == (other.id, ())


async def test_a_wish_to_run_that_was_refused_and_arrives_again_changes_nothing(talk: Conversation) -> None:
    first, refused = turn(), turn(on_busy=OnBusy.REJECT)
    await talk.enter(first)
    with talk.copies() as late:
        assert (await talk.enter(refused)).status is EnterStatus.BUSY
    await _taken_back(talk, refused)
    await talk.run(first)
    await talk.resend(late)
    assert await talk.places() == ("", ())


@LEAVE
async def test_a_turn_that_has_left_enters_again_if_its_job_waits(talk: Conversation, leave: Leave) -> None:
    """It was submitted anew, or Redis has come back without its last second."""
    job = turn()
    for _ in range(3):
        assert (await talk.enter(job)).status is EnterStatus.RUN
        await leave(talk, job)


@pytest.mark.parametrize("fields", [{"state": "succeeded"}, {"state": "running"}, {"closed": "call"}])
async def test_a_turn_that_has_left_enters_only_if_its_job_waits(
    talk: Conversation, store: aioredis.Redis, fields: dict[str, str]
) -> None:
    job = turn()
    await talk.enter(job)
    await talk.run(job)
    await talk.record(job, **{"state": "queued", **fields})
    assert (await talk.lanes.enter(Payload(job, "client"))).status is EnterStatus.BEGUN
    await store.delete(job_key(job.id))
    assert (await talk.lanes.enter(Payload(job, "client"))).status is EnterStatus.MISSING
    assert await talk.places() == ("", ())


async def test_an_attempt_whose_beginning_arrives_once_its_turn_is_over_does_not_take_the_session(
    talk: Conversation,
) -> None:
    job, later = turn(), turn()
    await talk.enter(job)
    with talk.copies() as late:
        await talk.begin(job)
    await talk.append(job)
    await talk.advance(job)
    await talk.resend(late)
    assert (await talk.enter(later)).status is EnterStatus.RUN
    await talk.resend(late)
    assert await talk.places() == (later.id, ())


async def test_a_parked_turn_does_not_begin_by_what_was_sent_before(talk: Conversation) -> None:
    """Its message was acked, and the turn before it vouches for it until it has another one."""
    first, second = turn(), turn()
    await talk.enter(first)
    with talk.copies() as late:
        assert await talk.begin(second) is BeginStatus.TAKEN
    assert (await talk.enter(second, admitted=True)).status is EnterStatus.WAIT
    assert await talk.run(first) == second.id
    await talk.resend(late)
    assert await talk.advance(first) == second.id
    assert await talk.begin(second, attempt=2) is BeginStatus.BEGUN


async def test_taking_a_turn_back_twice_leaves_the_place_that_it_was_given_since(talk: Conversation) -> None:
    first, job = turn(), turn()
    await talk.enter(first)
    await talk.enter(job)
    with talk.copies() as late:
        await _taken_back(talk, job)
    await talk.enter(job)
    await talk.resend(late)
    assert await talk.places() == (first.id, (job.id,))


async def test_a_turn_that_is_submitted_anew_while_it_is_taken_back_keeps_its_place(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, job = turn(), turn()
    await talk.enter(first)
    await talk.enter(job)
    held = JobRecords.held

    async def held_before_it_enters_again(records: JobRecords, job_id: str) -> Held:
        monkeypatch.setattr(JobRecords, "held", held)
        closed = await records.held(job_id)
        await talk.enter(job)
        return closed

    monkeypatch.setattr(JobRecords, "held", held_before_it_enters_again)
    assert await talk.take_back(job) is Withdrawn.OFFERED
    assert await talk.places() == (first.id, (job.id,))


async def test_a_worker_that_does_not_run_the_turn_any_more_cannot_begin_it(talk: Conversation) -> None:
    """Its command was held up on its way, and the session is idle by now."""
    job, later = turn(), turn()
    await talk.enter(job)
    await talk.run(job)
    for state, fence in (("succeeded", fence_of(job, 1)), ("running", fence_of(job, 2))):
        await talk.record(job, state, fence=fence.token)
        assert (await talk.histories.begin(job, fence=fence_of(job, 1))).status is BeginStatus.FENCED
    assert (await talk.enter(later)).status is EnterStatus.RUN


# Limits of what waits


async def test_as_many_turns_of_a_pool_wait_as_its_queue_may_hold_jobs(
    talk: Conversation, store: aioredis.Redis
) -> None:
    pool = "limited"
    await store.hset(pool_key(pool), "queue_max_length", 2)
    sessions = ("a", "b", "c")

    def of(session: str) -> Job:
        return turn(pool=pool).model_copy(update={"session_id": session})

    first, *_ = running = [of(session) for session in sessions]
    assert [(await talk.enter(job)).status for job in running] == [EnterStatus.RUN] * 3
    waiting = [of("a"), of("b")]
    assert [(await talk.enter(job)).status for job in waiting] == [EnterStatus.WAIT] * 2
    assert [(await talk.enter(of(session))).status for session in sessions] == [EnterStatus.FULL] * 3
    record = await talk.records.get("c")
    assert record is not None
    assert record.waiting == ()
    # Those that wait may ask again, and other pools have limits of their own.
    assert [(await talk.enter(job)).status for job in waiting] == [EnterStatus.WAIT] * 2
    assert (await talk.enter(of("a").model_copy(update={"pool": "other"}))).status is EnterStatus.WAIT
    # What was admitted before is not refused.
    admitted = of("c")
    assert (await talk.enter(admitted, admitted=True)).status is EnterStatus.WAIT
    # A place is free when a turn leaves its lane: cancelled there, or because its time has come.
    await talk.advance(admitted)
    assert (await talk.enter(of("c"))).status is EnterStatus.FULL
    assert await talk.advance(first) == waiting[0].id
    await talk.lanes.published(waiting[0])
    assert (await talk.enter(of("c"))).status is EnterStatus.WAIT
    assert (await talk.enter(of("c"))).status is EnterStatus.FULL


async def test_who_gives_up_before_its_turn_waits_takes_no_place_for_long(
    talk: Conversation, store: aioredis.Redis
) -> None:
    pool = "given-up"
    await store.hset(pool_key(pool), "queue_max_length", 2)
    owner, waiting, abandoned = turn(pool=pool), turn(pool=pool), turn(pool=pool)
    await talk.enter(owner)
    await talk.enter(waiting)
    await talk.counted(abandoned)
    scores: Any = await store.zrange(waiting_turns_key(pool), 0, -1, withscores=True)
    lives = dict(scores)
    assert lives[abandoned.id.encode()] + (BUSY_TTL_S - 2 * ENTERING_S) * 1000 < lives[waiting.id.encode()]
    assert (await talk.enter(turn(pool=pool))).status is EnterStatus.FULL


async def test_a_turn_that_leaves_while_it_is_noted_that_it_waits_is_counted_no_more(
    talk: Conversation, store: aioredis.Redis
) -> None:
    pool = "leaving"
    first, second = turn(pool=pool), turn(pool=pool)
    await talk.enter(first)
    with talk.copies() as sent:
        await talk.enter(second)
    await talk.run(first)
    await talk.lanes.published(second)
    # The last of them.
    await talk.resend(sent[-1:])
    assert await store.zcard(waiting_turns_key(pool)) == 0


async def test_a_turn_whose_request_is_lost_is_counted_no_more(
    talk: Conversation, store: aioredis.Redis
) -> None:
    pool = "lost-request"
    first, second = turn(pool=pool), turn(pool=pool)
    await talk.enter(first)
    await talk.enter(second)
    await talk.record(second, "queued", pool=pool)
    await store.delete(payloads_key(SESSION))
    assert await talk.run(first) is None
    assert await store.zcard(waiting_turns_key(pool)) == 0


async def test_a_turn_whose_lane_has_expired_takes_no_place_of_another(
    talk: Conversation, store: aioredis.Redis
) -> None:
    await store.hset(pool_key("limited"), "queue_max_length", 1)
    await store.zadd(waiting_turns_key("limited"), {"forgotten": 1})
    await talk.enter(turn(pool="limited"))
    assert (await talk.enter(turn(pool="limited"))).status is EnterStatus.WAIT


async def test_requests_that_wait_count_towards_the_size_limit_until_their_turns_end(
    talk: Conversation,
) -> None:
    first, second, third = turn(), turn(), turn()
    small = talk.with_settings(max_session_bytes=5 * len(Payload(first, "client").encode()) // 2)
    assert [(await small.enter(job)).status for job in (first, second)] == [EnterStatus.RUN, EnterStatus.WAIT]
    assert (await small.enter(third)).status is EnterStatus.TOO_LARGE
    assert (await small.enter(second)).status is EnterStatus.WAIT
    # Neither adds anything to the history.
    for job in (second, first):
        await small.advance(job)
    assert [(await small.enter(job)).status for job in (third, turn())] == [EnterStatus.RUN, EnterStatus.WAIT]
