"""kill -9 of a producer between its record in Redis and its message in RabbitMQ."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
from tests.chaos.conftest import WAIT_S, attempts, require_whole

from inferfleet.local.chaos.harness import Harness
from inferfleet.local.chaos.ledger import Accepted, Intent, read_ledger
from inferfleet.local.chaos.producer import Plan
from inferfleet.local.chaos.producers import ProducerProcess
from inferfleet.local.chaos.proxy import Direction
from inferfleet.local.chaos.workload import Kind, kind_of, make_job
from inferfleet.local.services.reaper import Reaper
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import JobState
from inferfleet.schemas.names import JOB_MESSAGE_TYPE

pytestmark = [pytest.mark.matrix, pytest.mark.store]


@pytest.fixture
async def producer(harness: Harness, fleet: Fleet, tmp_path: Path) -> AsyncIterator[ProducerProcess]:
    """A producer with one job to submit, a plain one."""
    number = plain_number(harness)
    plan = Plan(
        amqp_url="",
        redis_url="",
        client_id=harness.pool,
        pool=harness.pool,
        ledger=tmp_path / "ledger.jsonl",
        seed=seed_of(harness),
        first=number,
        step=1,
        end=number + 1,
        per_second=10.0,
        connect_timeout_s=WAIT_S,
        publish_timeout_s=WAIT_S,
    )
    # It waits until it is killed: if it gave up its connection, it would find its job under its key.
    link = await harness.link(heartbeat_s=round(WAIT_S))
    with Reaper() as reaper:
        producer = ProducerProcess(plan, link=link, log=tmp_path / "producer.log", reaper=reaper)
        yield producer
        await producer.crash()


async def test_a_job_whose_producer_died_before_it_was_published_runs_once_when_submitted_again(
    harness: Harness, fleet: Fleet, producer: ProducerProcess
) -> None:
    # Given a producer that has recorded its job, and cannot publish it
    producer.link.broker.hold(Direction.TO_SERVICE)
    producer.start()
    await harness.until(lambda: _recorded(harness), what="the job is recorded")
    await producer.link.broker.until_held(Direction.TO_SERVICE)

    # When it is killed, and another producer submits the same job under the same idempotency key
    assert await producer.crash() == -signal.SIGKILL
    assert [type(event) for event in read_ledger(producer.ledger)] == [Intent]
    assert await harness.waiting() == 0
    (recorded,) = await _records(harness)
    again = make_job(seed=seed_of(harness), number=plain_number(harness), pool=harness.pool)
    job = await fleet.submit(again)

    # Then it is the same job, and it runs once
    assert job.id == recorded
    await harness.worker()
    await require_whole(harness, job, await fleet.wait(job, timeout_s=WAIT_S))
    assert await _records(harness) == {job.id}
    await harness.until_empty()


async def test_a_producer_that_died_before_the_confirm_goes_on_with_the_same_job(
    harness: Harness, fleet: Fleet, producer: ProducerProcess
) -> None:
    # Given a producer whose job runs already while the confirm is on its way
    await harness.worker()
    producer.link.broker.hold_answers_to(JOB_MESSAGE_TYPE.encode())
    producer.start()

    async def runs() -> bool:
        ids = await _records(harness)
        return bool(ids) and bool(attempts(await harness.journal(next(iter(ids)))))

    await harness.until(runs, what="the job runs")
    (job_id,) = await _records(harness)
    await producer.link.broker.until_held(Direction.TO_CLIENT)

    # When it is killed and started again
    assert await producer.crash() == -signal.SIGKILL
    assert not any(isinstance(event, Accepted) for event in read_ledger(producer.ledger))
    producer.start()

    # Then it finds its job, and sees its one end
    assert await asyncio.wait_for(producer.wait(), WAIT_S) == 0
    (accepted,) = [event.job for event in read_ledger(producer.ledger) if isinstance(event, Accepted)]
    assert accepted.id == job_id
    record = await fleet.get(job_id)
    assert record.state is JobState.SUCCEEDED
    assert record.result is not None
    await require_whole(harness, accepted, record.result)
    await harness.until_empty()


def seed_of(harness: Harness) -> int:
    """Idempotency keys hold for all pools, so each test needs a seed of its own."""
    return int(harness.pool.removeprefix("chaos-"), 16)


def plain_number(harness: Harness) -> int:
    return next(
        number
        for number in count()
        if kind_of(make_job(seed=seed_of(harness), number=number, pool=harness.pool)) is Kind.PLAIN
    )


async def _recorded(harness: Harness) -> bool:
    return len(await _records(harness)) == 1


async def _records(harness: Harness) -> set[str]:
    """The ids of all jobs of the pool that have a record."""
    ids: set[str] = set()
    async for key in harness.redis.scan_iter(match="inferfleet:job:{*}", count=10_000):
        if await harness.redis.hget(key, "pool") == harness.pool.encode():
            ids.add(key.decode().partition("{")[2].removesuffix("}"))
    return ids
