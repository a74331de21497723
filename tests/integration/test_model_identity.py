"""An answer belongs to one model: whoever goes on with it has the same, or begins it again."""

from __future__ import annotations

import asyncio
import signal

import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    RunCommand,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    assert_whole,
    journal_of,
    kinds_of,
    read_all,
    slow_chat,
    text_of,
    until_tokens,
)
from tests.integration.sessions.test_sessions_deaths import DEATHS, dying_worker

from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.journal import JournalEntry, RestartedEntry, RestartReason, RunningEntry, TokensEntry
from inferfleet.schemas.names import job_key
from inferfleet.worker.engines.simulated import SimulatedEngine, SimulatedParameters, expected_text
from inferfleet.worker.ports import ModelIdentity

OTHER = {"speed": 0, "weights": 7}


def engine(model: str, **engine_args: object) -> SimulatedEngine:
    return SimulatedEngine(model=model, max_running=4, engine_args={"speed": 0, **engine_args})


def other_answer_to(job: Job) -> str:
    """What the model with ``OTHER`` weights says."""
    return expected_text(job.endpoint, job.body, parameters=SimulatedParameters(**OTHER))


def since_the_restart(entries: list[JournalEntry]) -> list[JournalEntry]:
    (position,) = [index for index, entry in enumerate(entries) if isinstance(entry, RestartedEntry)]
    return entries[position + 1 :]


async def test_a_worker_with_another_model_begins_the_answer_again(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    first = await start_worker(engine("model-a"))
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    await until_tokens(fleet, job, 5)
    await first.stop()
    partly = (await fleet.get(job)).model_copy()
    assert first.engine.identity is not None
    assert partly.model_identity == first.engine.identity.short
    second = await start_worker(engine("model-b", weights=7))
    result = (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()
    assert result.text == other_answer_to(job) != answer_to(job)
    assert second.engine.identity is not None
    assert result.model_identity == second.engine.identity.short != partly.model_identity
    assert (await fleet.get(job)).model_identity == result.model_identity
    entries = await journal_of(store, job)
    assert kinds_of(entries) == [
        *("queued", "running", "tokens", "queued", "restarted", "running", "tokens", "finished")
    ]
    (restarted,) = [entry for entry in entries if isinstance(entry, RestartedEntry)]
    assert (restarted.reason, restarted.tokens_wasted) == (RestartReason.ANOTHER_MODEL, partly.tokens)
    assert [entry.model_identity for entry in entries if isinstance(entry, RunningEntry)] == [
        partly.model_identity,
        result.model_identity,
    ]
    assert_whole(since_the_restart(entries))
    assert text_of(since_the_restart(entries)) == result.text
    exposition = second.worker._metrics.exposition().decode()  # pyright: ignore[reportPrivateUsage]
    wasted = f'inferfleet_tokens_wasted_total{{pool="{pool}",reason="another_model"}} {partly.tokens:.1f}'
    assert wasted in exposition


async def test_a_reader_who_saw_the_first_model_is_told_and_sees_the_second_whole(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    first = await start_worker(engine("model-a"))
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    seen: list[JournalEntry] = []
    async for line in fleet.stream(job):
        seen.append(line.entry)
        if isinstance(line.entry, TokensEntry) and not first.running.done():
            await first.stop()
            await start_worker(engine("model-b", weights=7))
    assert text_of(since_the_restart(seen)) == other_answer_to(job)


async def test_the_same_model_goes_on_on_whatever_machine(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    first = await start_worker(engine("model-a"))
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    await until_tokens(fleet, job, 5)
    await first.stop()
    await start_worker(engine("model-a", kv_cache_tokens=500_000, decode_step_base_s=0.5))
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    entries = await journal_of(store, job)
    assert_whole(entries)
    assert "restarted" not in kinds_of(entries)


async def test_tokens_of_an_older_version_that_named_no_model_are_not_continued(
    fleet: Fleet, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    first = await start_worker()
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    await until_tokens(fleet, job, 5)
    await first.stop()
    await store.hdel(job_key(job.id), "model_identity")
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
    (restarted,) = [e for e in await journal_of(store, job) if isinstance(e, RestartedEntry)]
    assert restarted.reason is RestartReason.ANOTHER_MODEL


async def test_a_worker_that_was_killed_is_followed_by_one_with_another_model(
    fleet: Fleet, start_worker_process: StartWorkerProcess, inferfleet: RunCommand, pool: str
) -> None:
    """The reproduction of the fault, by the commands."""
    first = await start_worker_process("--model", "model-A", lease_s="1")
    body = {"messages": [{"role": "user", "content": "a long story"}], "max_tokens": 400, "ignore_eos": True}
    job = await fleet.submit(body, pool=pool)
    await until_tokens(fleet, job)
    first.signal(signal.SIGKILL)
    assert await first.ended() == -signal.SIGKILL
    second = await start_worker_process("--model", "model-B", lease_s="1")
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    ready = await second.logged("ready")
    assert (result.state, result.model_identity) == (JobState.SUCCEEDED, ready["identity"]["short"])
    assert ready["identity"]["name"] == "model-B"
    entries = await read_all(fleet.stream(job))
    assert text_of(since_the_restart(entries)) == result.text
    (heartbeat,) = [each for each in await fleet.workers() if each.pool == pool and each.model == "model-B"]
    assert heartbeat.model_identity == result.model_identity
    shown = await inferfleet("get", job.id)
    assert f"model {result.model_identity}" in shown.err


async def test_a_session_keeps_its_text_under_any_model(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    session = fleet.session(f"{pool}-session")
    first = await start_worker(engine("model-a"))
    one = await session.send("one", pool=pool)
    said = (await fleet.wait(one, timeout_s=PATIENCE_S)).text
    await first.stop()
    await start_worker(engine("model-b", weights=7))
    two = await session.send("two", pool=pool)
    answer = (await fleet.wait(two, timeout_s=PATIENCE_S)).raise_for_state()
    history = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "two"},
    ]
    parameters = SimulatedParameters(**OTHER)
    assert answer.text == expected_text(two.endpoint, {"messages": history}, parameters=parameters)
    assert [turn.model for turn in await session.turns()] == ["model-a", "model-b"]


async def test_a_turn_that_the_first_model_has_answered_is_not_begun_again(
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    environment: dict[str, str],
    pool: str,
) -> None:
    """Its worker died between the turn and the commit: history, result and journal are of one model."""
    session = fleet.session(f"{pool}-session")
    place = DEATHS["between the turn and the commit"]
    async with dying_worker(place, environment | {"INFERFLEET_MODEL": "model-a"}, pool) as process:
        body = {"simulated": {"tokens": 120, "step_delay_s": 0.01}}
        job = await session.send("one", pool=pool, body=body, stream=True)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == -signal.SIGKILL
    partly = await fleet.get(job)
    assert partly.tokens
    await start_worker(engine("model-b", weights=7), lease_s=1)
    result = (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()
    assert result.text == answer_to(job)
    assert result.model_identity == partly.model_identity == engine("model-a").identity.short
    assert (await session.history())[-1]["content"] == result.text
    entries = await journal_of(store, job)
    assert "restarted" not in kinds_of(entries)
    assert result.text.startswith(text_of(entries))


def test_every_part_of_an_identity_makes_it_another() -> None:
    parts = {
        name: ModelIdentity(**{"engine": "e", "name": "n", name: "other"}).short
        for name in ModelIdentity.__dataclass_fields__
    }
    assert len({*parts.values(), ModelIdentity(engine="e", name="n").short}) == len(parts) + 1
    assert ModelIdentity(engine="e", name="n").short == ModelIdentity(name="n", engine="e").short
