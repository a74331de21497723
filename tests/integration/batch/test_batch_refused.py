"""A batch whose jobs are refused, for a while or for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.batch.conftest import Files, request, run_batch
from tests.integration.conftest import (
    Connect,
    ForeignClient,
    StartWorker,
    chat,
)

from inferfleet.producer import Fleet, window
from inferfleet.producer.batch import BatchProgress, batch_status, lines
from inferfleet.schemas import Job
from inferfleet.schemas.errors import (
    QueueFullError,
    ServiceRefusedError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.settings import ProducerSettings

pytestmark = pytest.mark.usefixtures("fleet")  # declares the pool


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(lines, "WAIT_PAUSE_S", 0.02)


async def test_a_full_queue_makes_a_batch_slower_and_loses_nothing(
    start_worker: StartWorker,
    connect: Connect,
    producer_settings: Any,
    foreign: ForeignClient,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = foreign.pool
    limited: dict[str, Any] = {"queue_max_length": 5, "queue_type": "classic"}
    await foreign.channel.queue_delete(f"inferfleet.jobs.{pool}")
    settings = producer_settings(**limited)
    async with connect(**limited) as fleet:
        await fleet.declare_pool(pool)
    refusals = 0
    submit = Fleet.submit

    async def counting(self: Fleet, *arguments: Any, **options: Any) -> Job:
        nonlocal refusals
        try:
            return await submit(self, *arguments, **options)
        except QueueFullError:
            refusals += 1
            raise

    monkeypatch.setattr(Fleet, "submit", counting)
    slow = {"max_tokens": 4, "simulated": {"tokens": 4, "step_delay_s": 0.002}}
    names = [f"request-{number}" for number in range(60)]
    files.write(*(request(name, chat(name, **slow)) for name in names))
    await start_worker(max_running=2, look_ahead=0, **limited)

    progress = await run_batch(files, settings, pool=pool)

    assert (progress.succeeded, progress.failed) == (60, 0)
    assert set(files.answers()) == set(names)
    # The first jobs are refused together; from then on the window is about as large as the queue.
    assert 0 < refusals < 60


@pytest.mark.usefixtures("short_pauses")
async def test_outages_pass_and_a_lasting_refusal_ends_the_batch(
    start_worker: StartWorker,
    settings: ProducerSettings,
    pool: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start_worker()
    files.write(*(request(name) for name in "abcdef"))
    submit, wait = Fleet.submit, Fleet.wait
    troubles: dict[str, Iterator[Exception]] = {
        "submit": iter(
            [
                ServiceUnreachableError("RabbitMQ is away"),
                UnknownPoolError("RabbitMQ has lost its queues"),
                ServiceRefusedError("Redis is full", passing=True),
            ]
        ),
        "wait": iter([ServiceUnreachableError("Redis is away")]),
    }

    async def troubled_submit(self: Fleet, work: Job, **options: Any) -> Job:
        if work.metadata["custom_id"] != "a" and (error := next(troubles["submit"], None)):
            raise error
        return await submit(self, work, **options)

    async def troubled_wait(self: Fleet, job: str, **options: Any) -> Any:
        if error := next(troubles["wait"], None):
            raise error
        return await wait(self, job, **options)

    monkeypatch.setattr(Fleet, "submit", troubled_submit)
    monkeypatch.setattr(Fleet, "wait", troubled_wait)
    told: list[BatchProgress] = []

    progress = await run_batch(files, settings, pool=pool, max_in_flight=1, tell=told.append)

    assert (progress.succeeded, next(troubles["submit"], None)) == (6, None)
    assert told[-1] == progress


@pytest.mark.usefixtures("short_pauses")
async def test_a_job_that_alone_is_refused_is_an_error_and_a_refusal_of_all_ends_the_batch(
    start_worker: StartWorker,
    settings: ProducerSettings,
    pool: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start_worker()
    files.write(*(request(name) for name in "abc"))
    submit = Fleet.submit
    refused = {"a", "b", "c"}
    accepted = asyncio.Event()
    refusals = 0

    async def refusing(self: Fleet, work: Job, **options: Any) -> Job:
        nonlocal refusals
        if work.metadata["custom_id"] in refused:
            refusals += 1
            if len(refused) == 1 and refusals > 1:
                await accepted.wait()
            raise ServiceRefusedError("RabbitMQ refuses it: too large")
        job = await submit(self, work, **options)
        accepted.set()
        return job

    monkeypatch.setattr(Fleet, "submit", refusing)
    with pytest.raises(ServiceRefusedError, match="too large"):
        await run_batch(files, settings, pool=pool)
    assert batch_status(files.output).failed == 0

    refused -= {"a", "c"}
    refusals = 0
    progress = await run_batch(files, settings, pool=pool)

    assert (progress.succeeded, progress.failed) == (2, 1)
    (failure,) = files.failures()
    assert (failure["custom_id"], failure["error"]["message"]) == ("b", "RabbitMQ refuses it: too large")
