"""What a session keeps: its state and settings within limits, and all of it in a fork or an export."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.conftest import (
    Connect,
    StartWorker,
    eventually,
    until_running,
)
from tests.integration.sessions.conftest import conversation, finished, is_idle, user

from inferfleet.producer import Fleet
from inferfleet.producer.sessions import Session
from inferfleet.schemas.errors import (
    InvalidJobError,
    SessionError,
    SessionTooLargeError,
    StateConflictError,
)
from inferfleet.schemas.session import SessionExport

pytestmark = [pytest.mark.matrix, pytest.mark.store]


# State


async def test_a_state_is_replaced_patched_and_guarded_by_its_version(fleet: Fleet, session: Session) -> None:
    assert await session.state() == (0, None)
    assert await session.update_state({"plan": ["a"], "done": 0}, version=0) == 1
    assert await session.patch_state({"done": 1, "plan": None}) == 2
    with pytest.raises(StateConflictError) as conflict:
        await session.update_state({}, version=1)
    assert (conflict.value.expected, conflict.value.present) == (1, 2)
    assert await session.state() == (2, {"done": 1})


async def test_many_patches_at_once_are_all_applied(session: Session) -> None:
    await asyncio.gather(*(session.patch_state({f"n{number}": number}) for number in range(10)))
    assert await session.state() == (10, {f"n{number}": number for number in range(10)})


async def test_a_turns_state_patch_is_applied_when_the_turn_is_added(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await session.update_state({"step": 0, "draft": "x"}, version=0)
    job = await session.send("hi", state_patch={"step": 1, "draft": None}, pool=pool)
    await session.patch_state({"note": "meanwhile"})
    await start_worker()
    await finished(fleet, job)
    assert await session.state() == (3, {"step": 1, "note": "meanwhile"})


# Limits


async def test_a_history_limit_shortens_the_prompt_and_not_the_history(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    system = {"role": "system", "content": "be brief, " * 40}
    body = {"max_tokens": 8, "ignore_eos": True}
    jobs = [await session.send([system, user("turn 0")], body=body, pool=pool)]
    await session.configure(max_history_tokens=180)
    jobs += [await session.send(f"turn {number}", body=body, pool=pool) for number in range(1, 12)]
    results = await finished(fleet, *jobs)
    turns = await session.turns()
    assert len(turns) == 12
    assert max(result.usage.prompt_tokens for result in results) <= 180 + 20
    assert results[-1].usage.prompt_tokens > 150
    assert max(turn.tokens for turn in turns[1:]) < 30, "the instructions are not counted with each turn"


async def test_a_session_at_its_size_limit_refuses_turns_and_states_with_a_clear_error(
    connect: Connect, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    async with connect(max_session_bytes=2000) as fleet:
        small = fleet.session(session.id)
        with pytest.raises(SessionTooLargeError, match="2,000 bytes"):
            await small.send("x" * 2000, pool=pool)
        assert await small.get() is None
        with pytest.raises(SessionTooLargeError, match="INFERFLEET_MAX_SESSION_BYTES"):
            await small.update_state("x" * 2000, version=0)
        await finished(fleet, await small.send("small", pool=pool))


async def test_settings_of_a_session_are_checked_and_kept(session: Session) -> None:
    with pytest.raises(InvalidJobError, match="idle_ttl_s: 0"):
        await session.configure(idle_ttl_s=0)
    await session.configure(idle_ttl_s=7)
    await session.configure(max_history_tokens=9)
    record = await session.get()
    assert record is not None
    assert (record.idle_ttl_s, record.max_history_tokens) == (7, 9)


# Whole sessions


async def test_a_fork_goes_its_own_way_from_a_turn_on(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    await finished(fleet, *[await session.send(text, pool=pool) for text in ("a", "b", "c")])
    await session.update_state({"k": 1}, version=0)
    fork = await session.fork(f"{session.id}-fork", turns=2)
    await finished(fleet, await fork.send("other", pool=pool))
    assert await fork.history() == conversation("a", "b", "other")
    assert await session.history() == conversation("a", "b", "c")
    assert await fork.state() == (1, {"k": 1})
    with pytest.raises(SessionError, match="exists"):
        await session.fork(fork.id)
    with pytest.raises(SessionError, match="3 turns"):
        await session.fork("more", turns=4)
    with pytest.raises(SessionError, match="there is no session"):
        await fleet.session("never-used").fork("x")


async def test_a_session_that_was_exported_and_imported_goes_on_as_if_nothing_had_happened(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    await finished(fleet, *[await session.send(text, pool=pool) for text in ("a", "b")])
    await session.update_state([1, None], version=0)
    await session.configure(max_history_tokens=10_000)
    document = (await session.export()).model_dump_json()
    assert await session.delete()
    assert await session.history() == []
    await session.import_(SessionExport.model_validate_json(document))
    assert (await session.export()).model_dump_json() == document
    await finished(fleet, await session.send("c", pool=pool))
    assert await session.history() == conversation("a", "b", "c")


async def test_a_session_deleted_while_turns_run_and_wait_stays_deleted_until_the_next_turn(
    fleet: Fleet, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    await finished(fleet, await session.send("forgotten", pool=pool))
    running = await session.send(
        "running", body={"simulated": {"tokens": 20, "step_delay_s": 0.02}}, pool=pool
    )
    await until_running(fleet, running)
    waiting = await session.send("waiting", pool=pool)
    assert await session.delete()
    assert await session.get() is None
    await finished(fleet, running, waiting)
    assert (await session.get(), await session.history()) == (None, [])
    assert session.id not in await fleet.sessions()
    await finished(fleet, await session.send("again", pool=pool))
    assert await session.history() == conversation("again")


async def test_a_session_that_nobody_uses_is_forgotten(
    fleet: Fleet, connect: Connect, session: Session, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    await session.configure(idle_ttl_s=1)
    await finished(fleet, await session.send("hi", pool=pool))
    await eventually(lambda: is_idle(session))
    await eventually(lambda: _is_gone(session))
    assert await session.history() == []


async def _is_gone(session: Session) -> bool:
    return await session.get() is None
