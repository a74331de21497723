"""Sessions as an agent's author sees them: turns in order, failures, tools."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    StartWorker,
    eventually,
    until_running,
    until_tokens,
)
from tests.integration.sessions.conftest import SLOW, conversation, exists, finished, user

from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas import Endpoint, FailureCode, Job, JobState
from inferfleet.schemas.errors import (
    IdempotencyConflictError,
    InvalidJobError,
    QueueFullError,
    UnknownPoolError,
)
from inferfleet.schemas.names import job_key, lane_key, payloads_key, session_key, state_key, turns_key
from inferfleet.worker.engines.simulated import expected_text

pytestmark = [pytest.mark.matrix, pytest.mark.store]


TOOLS = [{"type": "function", "function": {"name": "clock"}}]


# Turns


async def test_turns_run_in_the_order_they_were_submitted_over_producers_and_workers(
    fleet: Fleet, connect: Connect, session: Session, start_worker: StartWorker, pool: str
) -> None:
    texts = [f"turn {number}" for number in range(6)]
    async with connect() as other:
        jobs = [
            await client.session(session.id).send(text, pool=pool)
            for client, text in zip([fleet, other] * 3, texts, strict=True)
        ]
        for _ in range(3):
            await start_worker()
        results = await finished(fleet, *jobs)
    assert await session.history() == conversation(*texts)
    assert [result.text for result in results] == [
        message["content"] for message in await session.history() if message["role"] == "assistant"
    ]


async def test_a_batch_of_turns_keeps_its_order(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    texts = [f"turn {number}" for number in range(20)]
    jobs = await fleet.submit_many(texts, session_id=session.id, pool=pool)
    await finished(fleet, *jobs)
    assert await session.history() == conversation(*texts)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user"}],
        [user("")],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]}],
        [{"role": "critic", "content": ["worse", {"type": "input_text", "text": " than before"}]}],
        [{"role": "critic", "content": [{"type": "text", "text": None}]}],
        [{"role": "assistant", "content": None}, user("go on")],
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, user("why?")],
        [{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}, user("what?")],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "noon"}]},
        ],
        [{"role": "function", "name": "clock", "content": None}],
    ],
    ids=repr,
)
async def test_whatever_messages_vllm_takes_the_turns_behind_them_have_them(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str, messages: list[dict[str, Any]]
) -> None:
    await start_worker()
    body = {"max_tokens": "12", "n": 1.0, "stream": "no", "echo": "false"}
    turns: list[list[dict[str, Any]]] = [[user("hello")], messages, [user("and?")]]
    jobs = [await session.send(turn, pool=pool, body=body) for turn in turns]
    results = await finished(fleet, *jobs)
    expected: list[Mapping[str, Any]] = []
    for turn, result in zip(turns, results, strict=True):
        expected += turn
        assert result.error is None
        assert result.text == expected_text(Endpoint.CHAT, {"messages": expected, **body})
        expected.append({"role": "assistant", "content": result.text})
    assert await session.history() == expected
    copy = await session.fork(f"{session.id}-copy")
    assert await copy.history() == expected


async def test_a_turn_that_waits_takes_no_slot_and_holds_up_nobody_else(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str, foreign: ForeignClient
) -> None:
    await start_worker(max_running=1, look_ahead=0)
    running = await session.send("first", body=SLOW, pool=pool)
    await until_running(fleet, running)
    waiting = [await session.send(f"later {number}", pool=pool) for number in range(5)]
    assert await foreign.waiting() == 0
    record = await session.get()
    assert record is not None
    assert (record.owner, record.waiting) == (running.id, tuple(job.id for job in waiting))
    await fleet.cancel(running)
    await finished(fleet, *waiting)


async def test_the_same_submit_again_is_the_same_turn(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    keys = [str(uuid4()), str(uuid4())]
    jobs = [await session.send("hi", pool=pool, idempotency_key=key) for key in keys * 2]
    assert [job.id for job in jobs[:2]] == [job.id for job in jobs[2:]]
    await start_worker()
    await finished(fleet, *jobs)
    assert len(await session.turns()) == 2
    with pytest.raises(IdempotencyConflictError, match="session"):
        await fleet.session("another").send("hi", pool=pool, idempotency_key=keys[0])


async def test_a_turn_of_another_amqp_client_waits_for_its_turn_too(
    fleet: Fleet, session: Session, start_worker: StartWorker, foreign: ForeignClient, pool: str
) -> None:
    await start_worker()
    first = await session.send("first", body=SLOW, pool=pool)
    await until_running(fleet, first)
    second = Job(pool=pool, session_id=session.id, body={"messages": [user("second")]})
    await foreign.publish(second.model_dump_json().encode(), message_id=second.id)
    await eventually(lambda: _is_waiting(session, second))
    await fleet.cancel(first)
    (result,) = await finished(fleet, second)
    assert result.state is JobState.SUCCEEDED
    assert await session.history() == conversation("second")


async def _is_waiting(session: Session, job: Job) -> bool:
    record = await session.get()
    return record is not None and job.id in record.waiting


async def test_only_chats_have_sessions(
    fleet: Fleet, session: Session, start_worker: StartWorker, foreign: ForeignClient, pool: str
) -> None:
    with pytest.raises(InvalidJobError, match="only /v1/chat/completions has sessions"):
        await fleet.submit("x", endpoint=Endpoint.COMPLETIONS, session_id=session.id, pool=pool)
    await start_worker()
    job = Job(pool=pool, session_id=session.id, endpoint=Endpoint.EMBEDDINGS, body={"input": "x"})
    await foreign.publish(job.model_dump_json().encode(), message_id=job.id)
    await eventually(lambda: exists(fleet, job))
    (result,) = await finished(fleet, job)
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST


# Turns that do not succeed


@pytest.mark.parametrize(
    ("body", "options", "state"),
    [
        ({"simulated": {"fail": "invalid_request"}}, {}, JobState.FAILED),
        ({"simulated": {"fail": "engine_error"}}, {"max_attempts": 2}, JobState.FAILED),
        ({"simulated": {"hang": True}}, {"timeout_s": 0.1}, JobState.FAILED),
        ({}, {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, JobState.EXPIRED),
    ],
    ids=["failed", "dead letter", "timed out", "expired"],
)
async def test_a_turn_that_does_not_succeed_lets_the_next_run_and_leaves_the_history_as_it_was(
    fleet: Fleet,
    session: Session,
    start_worker: StartWorker,
    pool: str,
    body: dict[str, Any],
    options: dict[str, Any],
    state: JobState,
) -> None:
    before = await session.send("before", pool=pool)
    bad = await session.send("bad", body=body, pool=pool, state_patch={"bad": True}, **options)
    after = await session.send("after", pool=pool)
    await start_worker()
    results = await finished(fleet, before, bad, after)
    assert [result.state for result in results] == [JobState.SUCCEEDED, state, JobState.SUCCEEDED]
    assert await session.history() == conversation("before", "after")
    assert await session.state() == (0, None)


async def test_a_turn_that_is_retried_keeps_its_place(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    flaky = {"simulated": {"tokens": 20, "fail": "engine_error", "fail_times": 2, "after_tokens": 5}}
    jobs = [await session.send("flaky", body=flaky, pool=pool), await session.send("next", pool=pool)]
    results = await finished(fleet, *jobs)
    assert [result.attempts for result in results] == [3, 1]
    flaky_turn = conversation("flaky", simulated={"tokens": 20})
    assert await session.history() == conversation("next", after=flaky_turn)


async def test_a_turn_cancelled_in_its_lane_ends_at_once_and_is_passed_over(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    first = await session.send("first", pool=pool)
    second = await session.send("second", pool=pool)
    third = await session.send("third", pool=pool)
    assert await fleet.cancel(second) is JobState.CANCELLED
    assert (await fleet.wait(second, timeout_s=PATIENCE_S)).state is JobState.CANCELLED
    await start_worker()
    await finished(fleet, first, third)
    assert await session.history() == conversation("first", "third")


async def test_a_turn_for_an_unknown_pool_is_refused_also_when_it_would_wait(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    for _ in range(2):
        with pytest.raises(UnknownPoolError, match="nowhere"):
            await session.send("nobody", pool="nowhere")
    first = await session.send("first", pool=pool)
    with pytest.raises(UnknownPoolError, match="nowhere"):
        await session.send("nobody", pool="nowhere")
    third = await session.send("third", pool=pool)
    await start_worker()
    await finished(fleet, first, third)
    assert await session.history() == conversation("first", "third")


async def test_a_waiting_turn_whose_pool_is_deleted_fails_and_lets_the_next_run(
    fleet: Fleet, session: Session, start_worker: StartWorker, foreign: ForeignClient, pool: str
) -> None:
    doomed_pool = f"{pool}-gone"
    await fleet.declare_pool(doomed_pool)
    first = await session.send("first", body=SLOW, pool=pool)
    doomed = [await session.send("doomed", pool=doomed_pool) for _ in range(2)]
    last = await session.send("last", pool=pool)
    for queue in ("jobs", "dead"):
        await foreign.channel.queue_delete(f"inferfleet.{queue}.{doomed_pool}")
    await start_worker()
    await fleet.cancel(first)
    *failed, result = await finished(fleet, *doomed, last)
    for one in failed:
        assert one.error is not None
        assert one.error.code is FailureCode.MODEL_UNAVAILABLE
    assert result.state is JobState.SUCCEEDED
    assert await session.history() == conversation("last")


async def test_a_turn_is_not_refused_because_the_pool_of_the_turn_before_it_is_deleted(
    fleet: Fleet,
    session: Session,
    start_worker: StartWorker,
    store: aioredis.Redis,
    foreign: ForeignClient,
    pool: str,
) -> None:
    # Given a turn that is over, whose worker died before the next one was published
    doomed_pool = f"{pool}-gone"
    await fleet.declare_pool(doomed_pool)
    first = await session.send("first", pool=pool)
    doomed = await session.send("doomed", pool=doomed_pool)
    await store.hset(job_key(first.id), mapping={"state": "failed", "attempt": 1})
    # And the next one's pool is gone
    for queue in ("jobs", "dead"):
        await foreign.channel.queue_delete(f"inferfleet.{queue}.{doomed_pool}")

    # When there is one behind it
    last = await session.send("last", pool=pool)

    # Then that one runs
    await start_worker()
    assert (await fleet.wait(last, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED
    assert (await fleet.get(doomed)).state is JobState.CANCELLED


async def test_a_turn_refused_by_a_full_queue_leaves_its_session_free(
    connect: Connect, start_worker: StartWorker, services: Any, pool: str
) -> None:
    limited = f"{pool}-limited"
    # The limit of a quorum queue is not exact.
    exact: dict[str, Any] = {"queue_max_length": 1, "queue_type": "classic"}
    async with connect(**exact) as fleet:
        await fleet.declare_pool(limited)
        session = fleet.session(f"s-{uuid4()}")
        filler = await fleet.submit("filler", pool=limited)
        for _ in range(2):
            with pytest.raises(QueueFullError):
                await session.send("refused", pool=limited)
        await start_worker(pool=limited, **exact)
        await finished(fleet, filler)
        job = await session.send("first", pool=limited)
        await finished(fleet, job)
        assert await session.history() == conversation("first")


# Tools


async def test_a_tool_call_ends_the_turn_and_its_result_is_the_next(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    asked = await session.send("what time?", body={"tools": TOOLS, "tool_choice": "required"}, pool=pool)
    (result,) = await finished(fleet, asked)
    assert result.state is JobState.SUCCEEDED
    call = (await session.history())[-1]["tool_calls"][0]
    tool_message = {"role": "tool", "tool_call_id": call["id"], "content": "noon"}
    answered = await session.send([tool_message], pool=pool)
    (result,) = await finished(fleet, answered)
    assert result.state is JobState.SUCCEEDED
    assert [message["role"] for message in await session.history()] == [
        *["user", "assistant", "tool", "assistant"]
    ]


async def test_a_tool_result_without_its_call_is_an_error_and_leaves_the_history_as_it_was(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    stray = {"role": "tool", "tool_call_id": "call_1", "content": "noon"}
    jobs = [await session.send("hi", pool=pool), await session.send([stray], pool=pool)]
    _, result = await finished(fleet, *jobs)
    assert result.error is not None
    assert result.error.code is FailureCode.INVALID_REQUEST
    assert "'call_1'" in result.error.message
    assert await session.history() == conversation("hi")


# Redis loses its data


async def test_a_running_turn_whose_session_redis_lost_still_reaches_its_end(
    fleet: Fleet, session: Session, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker(lease_s=1)
    # Long enough that it still runs when its record is gone, on a busy machine, too.
    body = {"simulated": {"tokens": 100, "step_delay_s": 0.05}}
    first = await session.send("first", body=body, stream=True, pool=pool)
    await until_tokens(fleet, first, 3)
    parts = (session_key, lane_key, payloads_key, turns_key, state_key)
    await store.delete(job_key(first.id), *[key_of(session.id) for key_of in parts])
    # The session is somebody else's by now.
    second = await session.send("second", pool=pool)
    await eventually(lambda: exists(fleet, first))
    results = await finished(fleet, first, second)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    texts = [message["content"] for message in await session.history()]
    assert texts[::2] == ["second", "first"]


async def test_expired_turns_in_a_lane_end_as_expired(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    first = await session.send("first", body={"simulated": {"tokens": 30, "step_delay_s": 0.02}}, pool=pool)
    soon = datetime.now(UTC) + timedelta(seconds=0.1)
    second = await session.send("second", expires_at=soon, pool=pool)
    third = await session.send("third", pool=pool)
    await start_worker()
    results = await finished(fleet, first, second, third)
    assert [result.state for result in results] == [JobState.SUCCEEDED, JobState.EXPIRED, JobState.SUCCEEDED]
