"""Sessions in Redis: lanes, fences, history, state. The same on every kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis

from inferfleet.schemas import Job, Usage
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.schemas.job import OnBusy, new_job_id
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
from inferfleet.schemas.session import Turn
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis.attempts import Fence
from inferfleet.wire.redis.job_reading import Held
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import ENTERING_S, WaitingTurns
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.script import Argument
from inferfleet.wire.redis.session_histories import AppendStatus, BeginResult, BeginStatus, SessionHistories
from inferfleet.wire.redis.session_lanes import EnterResult, EnterStatus, Payload, SessionLanes, Withdrawn
from inferfleet.wire.redis.session_records import ReplaceStatus, SessionRecords
from inferfleet.wire.tasks import cancel_and_wait

SESSION = "s"
BUSY_TTL_S = 9000
IDLE_TTL_S = 100


class Conversation:
    """What producers and workers do to one session, in short words."""

    def __init__(self, store: aioredis.Redis, pipeline: CommandPipeline, **settings: Any) -> None:
        self._store = store
        self._pipeline = pipeline
        having: dict[str, Any] = {
            "pipeline": pipeline,
            "settings": ServiceSettings(queued_ttl_s=BUSY_TTL_S, session_ttl_s=IDLE_TTL_S, **settings),
        }
        self.lanes = SessionLanes(**having)
        self.histories = SessionHistories(**having)
        self.records = SessionRecords(**having)

    @contextmanager
    def copies(self) -> Generator[list[tuple[Argument, ...]]]:
        """Keep what is sent meanwhile."""
        sent: list[tuple[Argument, ...]] = []
        enqueue = self._pipeline.enqueue

        def keep(*command: Argument) -> asyncio.Future[Any]:
            sent.append(command)
            return enqueue(*command)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._pipeline, "enqueue", keep)
            yield sent

    async def resend(self, sent: list[tuple[Argument, ...]]) -> None:
        """Have copies of scripts arrive that were held up on their way."""
        for command in sent:
            if command[0] == "EVALSHA":
                await self._pipeline.execute(*command)

    async def places(self) -> tuple[str, tuple[str, ...]]:
        """The turn that owns the session, and those that wait."""
        record = await self.records.get(SESSION)
        return ("", ()) if record is None else (record.owner or "", record.waiting)

    async def take_back(self, job: Job) -> Withdrawn:
        """What the producer of a turn does whose submission was refused."""
        await self.record(job, "queued", closed="call")
        return (await self.lanes.withdraw(job))[0]

    def with_settings(self, **settings: Any) -> Conversation:
        return Conversation(self._store, self._pipeline, **settings)

    async def record(self, job: Job, state: str, **fields: Any) -> None:
        """Have the job's record say this, as its own scripts would."""
        values: dict[Any, Any] = {"state": state, "attempt": 0, **fields}
        await self._store.hset(job_key(job.id), mapping=values)

    async def state(self, job: Job) -> str:
        state: Any = await self._store.hget(job_key(job.id), "state")
        return state.decode()

    async def enter(self, job: Job, **more: Any) -> EnterResult:
        await self.record(job, "queued")
        await self._store.hdel(job_key(job.id), "closed")
        return await self.lanes.enter(Payload(job, "client"), **more)

    async def advance(self, job: Job, **more: Any) -> str | None:
        await self.record(job, "succeeded")
        following = await self.lanes.advance(job, **more)
        return following.job.id if following else None

    async def begin(self, job: Job, attempt: int = 1, **more: Any) -> BeginStatus:
        return (await self.begun(job, attempt, **more)).status

    async def begun(self, job: Job, attempt: int = 1, **more: Any) -> BeginResult:
        fence = _fence(job, attempt)
        await self.record(job, "running", fence=fence.token)
        return await self.histories.begin(job, fence=fence, **more)

    async def append(self, job: Job, attempt: int = 1, state: Any = None) -> AppendStatus:
        return await self.histories.append(
            job, fence=_fence(job, attempt), turn=turn_of(job), answer=b"answer", state=state
        )

    async def counted(self, job: Job) -> bool:
        """Count a turn among those that wait, and no more."""
        return bool(await WaitingTurns(self._pipeline, lane_ttl_s=BUSY_TTL_S).count(job))

    async def run(self, job: Job) -> str | None:
        """A whole turn, from the message in the queue to its end. Returns what runs next."""
        assert await self.begin(job) is BeginStatus.BEGUN
        assert await self.append(job) is AppendStatus.OK
        return await self.advance(job)

    async def history(self) -> list[str]:
        return [turn.job_id for turn in await self.histories.turns(SESSION)]

    async def lifetimes(self) -> list[int]:
        """The rest of life in seconds of the session's record, turns and state."""
        return [await self._store.ttl(key(SESSION)) for key in (session_key, turns_key, state_key)]


Leave = Callable[[Conversation, Job], Awaitable[None]]


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
    for state, fence in (("succeeded", _fence(job, 1)), ("running", _fence(job, 2))):
        await talk.record(job, state, fence=fence.token)
        assert (await talk.histories.begin(job, fence=_fence(job, 1))).status is BeginStatus.FENCED
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


# Attempts


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
    await talk.histories.renew(second, fence=_fence(second, 2), witness=first)
    assert max(await talk.lifetimes()) <= 5
    await talk.histories.renew(second, fence=_fence(second, 1), witness=first)
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


async def test_turns_that_run_and_wait_go_on_in_the_session_that_was_emptied(
    talk: Conversation, store: aioredis.Redis
) -> None:
    first, second, third = turn(), turn(), turn()
    await talk.enter(first)
    await talk.run(first)
    await talk.enter(second)
    await talk.enter(third)
    await talk.begin(second)
    assert await talk.records.delete(SESSION)
    assert await talk.append(second) is AppendStatus.OK
    assert await talk.advance(second) == third.id
    assert await talk.run(third) is None
    record = await talk.records.get(SESSION)
    assert record is not None
    assert (await talk.history(), record.turns) == ([second.id, third.id], 2)
    assert not await store.exists(lane_key(SESSION), payloads_key(SESSION))


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
