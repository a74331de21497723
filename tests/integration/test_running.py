"""Shortcuts of the client: run a job, read its text, take results as they come, also blocking."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorker,
    answer_to,
    chat,
    slow_chat,
    until_running,
)
from tests.integration.test_model_identity import engine, other_answer_to

from inferfleet.producer import Fleet, SyncFleet
from inferfleet.schemas import Endpoint, JobState, Result
from inferfleet.schemas.errors import (
    AnswerRestartedError,
    JobFailedError,
    JobNotFoundError,
    WaitTimeoutError,
)
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.settings import ProducerSettings


async def ended(fleet: Fleet, *jobs: Any, timeout_s: float = PATIENCE_S) -> list[Result]:
    return [result async for result in fleet.as_completed(jobs, timeout_s=timeout_s)]


async def test_run_returns_the_result(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    await start_worker()
    result = await fleet.run("hello", pool=pool, wait_timeout_s=PATIENCE_S, timeout_s=30)
    assert result.state is JobState.SUCCEEDED
    assert (await fleet.get(result.job_id)).result == result


async def test_run_raises_if_the_job_fails(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    await start_worker()
    with pytest.raises(JobFailedError, match="prompt_too_long"):
        await fleet.run(chat(simulated={"fail": "prompt_too_long"}), pool=pool, wait_timeout_s=PATIENCE_S)


async def test_the_limit_of_a_wait_is_not_the_limit_of_the_job(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    key = pool
    with pytest.raises(WaitTimeoutError, match="it continues"):
        await fleet.run("hello", pool=pool, wait_timeout_s=0.01, idempotency_key=key)
    await start_worker()
    assert (await fleet.run("hello", pool=pool, wait_timeout_s=PATIENCE_S, idempotency_key=key)).text
    with pytest.raises(JobFailedError, match="timeout"):
        await fleet.run(
            slow_chat(tokens=500, step_s=0.02), pool=pool, timeout_s=0.05, wait_timeout_s=PATIENCE_S
        )


async def test_a_text_stream_yields_the_answer_in_pieces(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(slow_chat(tokens=20, step_s=0.02), pool=pool, stream=True)
    pieces = [piece async for piece in fleet.text_stream(job)]
    assert len(pieces) > 1
    assert all(pieces)
    assert "".join(pieces) == answer_to(job)


async def test_a_text_stream_is_of_the_first_choice(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(chat(n=3, seed=5), pool=pool)
    text = "".join([piece async for piece in fleet.text_stream(job)])
    assert text == (await fleet.wait(job)).text


async def test_a_text_stream_raises_behind_the_text_of_a_job_that_did_not_succeed(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    job = await fleet.submit(slow_chat(tokens=500, step_s=0.02), pool=pool, stream=True)
    text = fleet.text_stream(job)
    pieces = [await anext(text)]
    await fleet.cancel(job)
    with pytest.raises(JobFailedError, match="cancelled"):  # noqa: PT012
        # A comprehension would lose its pieces with the error.
        async for piece in text:
            pieces.append(piece)  # noqa: PERF401
    result = await fleet.wait(job)
    assert "".join(pieces) == result.text
    with pytest.raises(JobNotFoundError):
        await anext(fleet.text_stream(new_job_id()))


async def test_a_restarted_answer_is_never_glued_to_the_text_before_it(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    first = await start_worker(engine("model-a"))
    job = await fleet.submit(slow_chat(tokens=150, step_s=0.02), pool=pool, stream=True)
    text = fleet.text_stream(job)
    assert answer_to(job).startswith(await anext(text))
    await first.stop()
    await start_worker(engine("model-b", weights=7))
    with pytest.raises(AnswerRestartedError, match="another_model") as caught:
        [piece async for piece in text]
    again = "".join([piece async for piece in fleet.text_stream(job, after=caught.value.after)])
    assert again == other_answer_to(job)


async def test_results_come_as_their_jobs_end(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    await start_worker(max_running=2)
    slow = await fleet.submit(slow_chat(tokens=500, step_s=0.05), pool=pool)
    await until_running(fleet, slow)
    quick = await fleet.submit("quick", pool=pool)
    seen: list[str] = []
    async for result in fleet.as_completed([slow, quick.id], timeout_s=PATIENCE_S):
        seen.append(result.job_id)
        if result.job_id == quick.id:
            await fleet.cancel(slow)
        else:
            assert result.state is JobState.CANCELLED
    assert seen == [quick.id, slow.id]
    assert await ended(fleet) == []


async def test_results_that_do_not_come_in_time_are_an_error_and_the_jobs_continue(
    fleet: Fleet, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    with pytest.raises(WaitTimeoutError, match="not all jobs finished"):
        await ended(fleet, job, timeout_s=0.01)
    with pytest.raises(JobNotFoundError):
        await ended(fleet, job, new_job_id())
    assert (await fleet.get(job)).state is JobState.QUEUED


async def test_a_handle_knows_its_job(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    job = await fleet.submit(slow_chat(tokens=20, step_s=0.02), pool=pool, stream=True)
    handle = fleet.job(job)
    with pytest.raises(WaitTimeoutError, match=job.id):
        await handle.wait(timeout_s=0.01)
    await start_worker()
    assert "".join([piece async for piece in handle.text_stream()]) == answer_to(job)
    lines = [line async for line in handle.stream()]
    assert [line async for line in handle.stream(after=lines[1].id)] == lines[2:]
    result = await handle.wait(timeout_s=PATIENCE_S)
    assert (await fleet.job(job.id).get()).result == result
    assert await handle.cancel() is JobState.SUCCEEDED
    with pytest.raises(JobNotFoundError):
        await fleet.job(new_job_id()).wait(timeout_s=PATIENCE_S)


async def test_the_blocking_client_has_them_too_and_sessions_and_dead_letters(
    start_worker: StartWorker, producer_settings: Any, fleet: Fleet, pool: str
) -> None:
    worker = await start_worker(worker_id=f"w-{pool}")
    settings: ProducerSettings = producer_settings()

    def work() -> None:
        with SyncFleet.connect(settings) as client:
            client.declare_pool(pool)
            result = client.run("hello", pool=pool, wait_timeout_s=PATIENCE_S)
            assert "".join(client.text_stream(result.job_id)) == result.text
            jobs = client.submit_many(["one", "two"], pool=pool)
            assert {each.job_id for each in client.as_completed(jobs, timeout_s=PATIENCE_S)} == {
                job.id for job in jobs
            }
            assert client.get_many(job for job in jobs).keys() == {job.id for job in jobs}
            handle = client.job(jobs[0])
            assert "".join(handle.text_stream()) == handle.wait(timeout_s=PATIENCE_S).text
            assert [line.id for line in handle.stream()][-1:] == [[*client.stream(handle.id)][-1].id]
            assert handle.cancel() is handle.get().state is JobState.SUCCEEDED

            session = client.session(f"s-{pool}")
            client.wait(session.send("hello", pool=pool), timeout_s=PATIENCE_S)
            assert session.update_state({"k": 1}, version=0) == session.state()[0]
            session.patch_state({"j": 2})
            copy = session.fork(f"{session.id}-copy")
            assert copy.history() == session.history() != []
            assert copy.state()[1] == {"k": 1, "j": 2}
            assert copy.delete()
            copy.import_(session.export())
            copy.configure(max_history_tokens=100)
            record = copy.get()
            assert record is not None
            assert (record.max_history_tokens, copy.turns()) == (100, session.turns())
            assert client.sessions(limit=10**6)

            broken = client.submit(chat(simulated={"fail": "internal"}), pool=pool, max_attempts=1)
            client.wait(broken, timeout_s=PATIENCE_S)
            assert [letter.message_id for letter in client.dead_letters.read(pool)] == [broken.id]
            (replayed,) = client.dead_letters.replay(pool, ids=[broken.id])
            client.wait(replayed, timeout_s=PATIENCE_S)
            assert client.dead_letters.count(pool) == 1
            assert client.dead_letters.purge(pool, everything=True) == 1

            assert f"w-{pool}" in {heartbeat.worker_id for heartbeat in client.workers()}
            client.drain(f"w-{pool}", timeout_s=PATIENCE_S)

    await asyncio.wait_for(asyncio.to_thread(work), 2 * PATIENCE_S)
    await asyncio.wait_for(worker.running, PATIENCE_S)


async def test_what_is_not_generated_has_no_text(fleet: Fleet, start_worker: StartWorker, pool: str) -> None:
    await start_worker()
    job = await fleet.submit("hello", endpoint=Endpoint.EMBEDDINGS, pool=pool)
    assert [piece async for piece in fleet.text_stream(job)] == []
