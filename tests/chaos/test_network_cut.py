"""Networks that fail in one direction: longer than Redis' timeouts, a lease, or an AMQP heartbeat."""

from __future__ import annotations

import asyncio

import pytest
from tests.chaos.conftest import WAIT_S, attempts, prompt, require_whole

from inferfleet.local.chaos.harness import AMQP_HEARTBEAT_S, LEASE_S, Harness
from inferfleet.local.chaos.proxy import Direction
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job
from inferfleet.wire.redis.connection import SOCKET_TIMEOUT_S


@pytest.mark.parametrize("direction", Direction)
async def test_a_worker_cut_off_from_redis_keeps_what_it_generates(
    harness: Harness, fleet: Fleet, direction: Direction
) -> None:
    # Given a worker in mid-answer, and another that could take over
    cut_off, _ = await harness.workers(2)
    jobs = await _submit(harness, fleet, 6, tokens=300)

    # When one direction to Redis is cut for longer than its lease and its socket timeout last
    cut_off.link.store.hold(direction)
    await asyncio.sleep(max(LEASE_S, SOCKET_TIMEOUT_S) + 1)
    cut_off.link.store.heal()

    # Then every job ends once and whole, and those on the worker were not started again
    for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=WAIT_S), strict=True):
        journal = await require_whole(harness, job, result)
        assert len(attempts(journal)) == 1
    await harness.until_empty()


@pytest.mark.matrix
@pytest.mark.parametrize("direction", Direction)
async def test_a_worker_cut_off_from_the_broker_finishes_what_it_runs(
    harness: Harness, fleet: Fleet, direction: Direction
) -> None:
    # Given a worker in mid-answer, and another that will be given its messages
    cut_off, _ = await harness.workers(2)
    jobs = await _submit(harness, fleet, 6, tokens=500)

    # When one direction to the broker is cut until both sides have given the connection up
    cut_off.link.broker.hold(direction)
    await asyncio.sleep(3 * AMQP_HEARTBEAT_S + 1)
    cut_off.link.broker.heal()

    # Then every job ends once and whole, in the one attempt that it had
    for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=WAIT_S), strict=True):
        journal = await require_whole(harness, job, result)
        assert len(attempts(journal)) == 1
    await harness.until_empty()
    # And the worker takes jobs again.
    more = await _submit(harness, fleet, 16, tokens=20)
    results = await fleet.wait_many(more, timeout_s=WAIT_S)
    assert cut_off.id in {result.worker_id for result in results}


async def _submit(harness: Harness, fleet: Fleet, count: int, *, tokens: int) -> list[Job]:
    jobs = await fleet.submit_many(
        (prompt(f"cut {n} {tokens}", tokens=tokens) for n in range(count)), pool=harness.pool, stream=True
    )
    await harness.until_tokens([job.id for job in jobs])
    return jobs
