"""RabbitMQ loses messages: a queue is emptied, deleted or trimmed, or the broker loses its disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiormq
import pytest
from tests.chaos.conftest import WAIT_S, ends, prompt, require_whole

from inferfleet.local.chaos.harness import Harness
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.schemas.names import job_queue

SWEEP_S = 1.0


async def purge(harness: Harness) -> None:
    connection = await aiormq.connect(harness.services.amqp_url)
    await (await connection.channel()).queue_purge(job_queue(harness.pool))
    await connection.close()


async def delete(harness: Harness) -> None:
    connection = await aiormq.connect(harness.services.amqp_url)
    await (await connection.channel()).queue_delete(job_queue(harness.pool))
    await connection.close()


async def trim(harness: Harness) -> None:
    pattern = f"^{job_queue(harness.pool)}$".replace(".", "[.]")
    await asyncio.to_thread(
        harness.broker.control, "set_operator_policy", "trim", pattern, '{"max-length": 3}'
    )
    connection = await aiormq.connect(harness.services.amqp_url)
    channel = await connection.channel()
    # RabbitMQ applies a policy some time after it has accepted it.
    while ((await channel.queue_declare(job_queue(harness.pool), passive=True)).message_count or 0) > 3:
        await asyncio.sleep(0.05)
    await connection.close()
    await asyncio.to_thread(harness.broker.control, "clear_operator_policy", "trim")


async def wipe(harness: Harness) -> None:
    await asyncio.to_thread(harness.broker.kill)
    await asyncio.to_thread(harness.broker.start, keep_data=False)


@pytest.mark.parametrize("loss", [purge, delete, trim, wipe])
async def test_all_jobs_end_once_whatever_the_broker_forgets(
    harness: Harness, fleet: Fleet, loss: Callable[[Harness], Awaitable[None]]
) -> None:
    # Given running jobs on two workers, and jobs that wait behind them
    doomed, _ = await harness.workers(2, max_running=2, look_ahead=1, sweep_interval_s=SWEEP_S)
    # These keep the workers busy until the loss. rabbitmqctl takes its time on a busy machine.
    tokens = 2000 if loss is trim else 150
    running = [
        await fleet.submit(prompt(f"running {n}", tokens=tokens), pool=harness.pool, stream=True)
        for n in range(4)
    ]
    await harness.until_tokens([job.id for job in running])
    waiting = await fleet.submit_many(
        Job(
            pool=harness.pool,
            body=prompt(f"waiting {n}", tokens=2),
            priority=n % 2,
            idempotency_key=f"{harness.pool}-{n}",
        )
        for n in range(40)
    )

    # When the broker forgets the messages, and a worker dies, whose messages cannot come back
    await loss(harness)
    await doomed.crash()
    await harness.worker(max_running=2, look_ahead=1, sweep_interval_s=SWEEP_S)

    # Then each job ends once, with the same answer as ever
    jobs = [*running, *waiting]
    results = await fleet.wait_many(jobs, timeout_s=WAIT_S)
    republished = 0
    for job, result in zip(jobs, results, strict=True):
        assert result.state is JobState.SUCCEEDED
        journal = await require_whole(harness, job, result)
        assert len(ends(journal)) == 1
        republished += any(isinstance(entry, QueuedEntry) and entry.republished for entry in journal)
    assert republished >= 30

    # And the same key finds the same job.
    again = await fleet.submit(waiting[-1].model_copy(update={"id": new_job_id()}))
    assert again.id == waiting[-1].id
    await harness.until_empty()


async def test_a_job_that_runs_without_its_message_keeps_its_worker_from_holding_another(
    harness: Harness, fleet: Fleet
) -> None:
    # Given a worker without a free slot, and a queue that is deleted with the messages of its jobs
    await harness.worker(max_running=2, look_ahead=0, sweep_interval_s=SWEEP_S)
    running = [
        await fleet.submit(prompt(f"running {n}", tokens=100_000), pool=harness.pool, stream=True)
        for n in range(2)
    ]
    await harness.until_tokens([job.id for job in running])
    await delete(harness)
    await fleet.declare_pool(harness.pool)
    next_jobs = [await fleet.submit(prompt(f"next {n}", tokens=2), pool=harness.pool) for n in range(4)]

    # When another worker starts, then it gets all jobs that came since.
    await harness.worker(max_running=2, look_ahead=0, sweep_interval_s=SWEEP_S)
    for result in await fleet.wait_many(next_jobs, timeout_s=WAIT_S):
        assert result.state is JobState.SUCCEEDED
    for job in running:
        await fleet.cancel(job)
    await fleet.wait_many(running, timeout_s=WAIT_S)
    await harness.until_empty()
