"""A turn that comes while another is in its way, which is queued, running, or has just finished."""

from __future__ import annotations

import pytest
from tests.integration.conftest import (
    StartWorker,
    eventually,
    until_running,
    until_tokens,
)
from tests.integration.sessions.conftest import SLOW, conversation, finished, is_idle, user

from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas import Endpoint, Job, JobState
from inferfleet.schemas.errors import (
    SessionBusyError,
)
from inferfleet.schemas.job import OnBusy
from inferfleet.worker.engines.simulated import expected_text

pytestmark = [pytest.mark.matrix, pytest.mark.store]


async def test_a_second_turn_is_refused_while_the_first_is_queued_or_running(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    first = await session.send("first", body=SLOW, pool=pool)
    with pytest.raises(SessionBusyError, match=first.id):
        await session.send("refused", on_busy="reject", pool=pool)
    await start_worker()
    await until_running(fleet, first)
    with pytest.raises(SessionBusyError, match="on_busy=enqueue, interrupt or rollback"):
        await session.send("refused", on_busy="reject", pool=pool)
    await fleet.cancel(first)
    await finished(fleet, first)
    await eventually(lambda: is_idle(session))
    second = await session.send("second", on_busy="reject", pool=pool)
    await finished(fleet, second)
    assert await session.history() == conversation("second")


@pytest.mark.parametrize("on_busy", [OnBusy.INTERRUPT, OnBusy.ROLLBACK])
async def test_a_queued_turn_that_is_in_the_way_ends_without_a_trace(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str, on_busy: OnBusy
) -> None:
    first = await session.send("first", pool=pool)
    second = await session.send("second", on_busy=on_busy, pool=pool)
    assert (await fleet.get(first)).state is JobState.CANCELLED
    await start_worker()
    await finished(fleet, second)
    assert await session.history() == conversation("second")


async def test_an_interrupted_turn_keeps_what_it_said(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    first = await session.send("first", body=SLOW, stream=True, pool=pool)
    await until_tokens(fleet, first, 5)
    second = await session.send("second", on_busy="interrupt", pool=pool)
    interrupted, _ = await finished(fleet, first, second)
    assert interrupted.state is JobState.CANCELLED
    whole = expected_text(Endpoint.CHAT, {"messages": [user("first")], **SLOW})
    assert interrupted.text
    assert whole.startswith(interrupted.text)
    said = [user("first"), {"role": "assistant", "content": interrupted.text}]
    assert await session.history() == conversation("second", after=said)
    turns = await session.turns()
    assert [turn.interrupted for turn in turns] == [True, False]
    assert turns[0].tokens > 5


async def test_an_interrupted_turn_that_said_nothing_yet_is_a_question_without_an_answer(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    first = await session.send("first", body={"simulated": {"hang": True}}, pool=pool)
    await until_running(fleet, first)
    second = await session.send("second", on_busy="interrupt", pool=pool)
    await finished(fleet, first, second)
    said = [user("first"), {"role": "assistant", "content": ""}]
    assert await session.history() == conversation("second", after=said)


async def test_a_turn_that_is_rolled_back_leaves_no_trace(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    first = await session.send("first", body=SLOW, stream=True, state_patch={"no": 1}, pool=pool)
    await until_tokens(fleet, first, 5)
    second = await session.send("second", on_busy="rollback", pool=pool)
    rolled_back, _ = await finished(fleet, first, second)
    assert rolled_back.state is JobState.CANCELLED
    assert await session.history() == conversation("second")
    assert await session.state() == (0, None)


@pytest.mark.parametrize("on_busy", OnBusy)
async def test_a_turn_that_has_just_finished_stays_whatever_the_next_one_says(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str, on_busy: OnBusy
) -> None:
    await start_worker()
    first = await session.send("first", pool=pool)
    await finished(fleet, first)
    while True:
        try:
            second = await session.send("second", on_busy=on_busy, pool=pool)
            break
        except SessionBusyError:
            # Its worker has committed it, and is about to let the next one run.
            assert on_busy is OnBusy.REJECT
    results = await finished(fleet, first, second)
    assert {result.state for result in results} == {JobState.SUCCEEDED}
    assert await session.history() == conversation("first", "second")


async def test_an_interruption_stops_only_the_running_turn(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    first = await session.send("first", body=SLOW, pool=pool)
    await until_running(fleet, first)
    second = await session.send("second", pool=pool)
    third = await session.send("third", on_busy="rollback", pool=pool)
    states = [result.state for result in await finished(fleet, first, second, third)]
    assert states == [JobState.CANCELLED, JobState.SUCCEEDED, JobState.SUCCEEDED]
    assert await session.history() == conversation("second", "third")


async def test_a_turn_that_waits_for_its_retry_is_interrupted_with_what_it_had_said(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(retry_base_s=1.0)
    failing = {"simulated": {"tokens": 50, "fail": "engine_error", "after_tokens": 10}}
    first = await session.send("first", body=failing, pool=pool)
    await eventually(lambda: _has_failed_once(fleet, first))
    second = await session.send("second", on_busy="interrupt", pool=pool)
    interrupted, _ = await finished(fleet, first, second)
    assert interrupted.state is JobState.CANCELLED
    said = [user("first"), {"role": "assistant", "content": interrupted.text}]
    assert await session.history() == conversation("second", after=said)


async def _has_failed_once(fleet: Fleet, job: Job) -> bool:
    record = await fleet.get(job)
    return record.state is JobState.QUEUED and record.attempt == 1
