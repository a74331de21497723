"""Networks that fail in one direction: longer than Redis' timeouts, a lease, or an AMQP heartbeat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from tests.chaos.conftest import WAIT_S, attempts, prompt, require_whole

from inferfleet.local.chaos.harness import Harness, Member
from inferfleet.local.chaos.proxy import Direction, Proxy
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Job
from inferfleet.schemas.names import job_key


@pytest.mark.store
@pytest.mark.parametrize("direction", Direction)
async def test_a_worker_cut_off_from_redis_keeps_what_it_generates(
    harness: Harness, fleet: Fleet, direction: Direction
) -> None:
    # Given a worker in mid-answer, and another that could take over
    cut_off, _ = await harness.workers(2)
    await harness.until(partial(_has_workers, harness, 2), what="both take jobs")
    jobs = await _submit(harness, fleet, 6, tokens=500)

    # When one direction to Redis is cut for longer than its leases and its patience with a connection last
    tries_again = _tries_again(cut_off.link.store)
    cut_off.link.store.hold(direction)
    await cut_off.link.store.until_held(direction)
    await harness.until(partial(_leases_have_run_out, harness, cut_off, jobs), what="its leases run out")
    await harness.until(tries_again, what="it gives the connection up")
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
    await harness.until(partial(_has_workers, harness, 2), what="both take jobs")
    jobs = await _submit(harness, fleet, 6, tokens=500)

    # When one direction to the broker is cut until both sides have given the connection up
    tries_again = _tries_again(cut_off.link.broker)
    cut_off.link.broker.hold(direction)
    await cut_off.link.broker.until_held(direction)
    await harness.until(tries_again, what="the worker gives the connection up")
    await harness.until(partial(_has_workers, harness, 1), what="so does the broker")
    cut_off.link.broker.heal()

    # Then every job ends once and whole, in the one attempt that it had
    for job, result in zip(jobs, await fleet.wait_many(jobs, timeout_s=WAIT_S), strict=True):
        journal = await require_whole(harness, job, result)
        assert len(attempts(journal)) == 1
    await harness.until_empty()
    # And the worker takes jobs again.
    await harness.until(partial(_has_workers, harness, 2), what="it is back")
    more = await _submit(harness, fleet, 16, tokens=20)
    results = await fleet.wait_many(more, timeout_s=WAIT_S)
    assert cut_off.id in {result.worker_id for result in results}


async def _leases_have_run_out(harness: Harness, worker: Member, jobs: list[Job]) -> bool:
    records: list[Any] = [await harness.redis.hgetall(job_key(job.id)) for job in jobs]
    seconds, _ = await harness.redis.time()
    own = [record for record in records if record[b"worker"].decode() == worker.id]
    assert own
    assert all(record[b"state"] == b"running" for record in own), "they have ended before the cut was felt"
    return all(int(record[b"lease"]) < seconds * 1000 for record in own)


def _tries_again(link: Proxy) -> Callable[[], Awaitable[bool]]:
    """Whether the client has made another connection than those that it had before."""
    before = link.accepted

    async def tries_again() -> bool:
        return link.accepted > before

    return tries_again


async def _has_workers(harness: Harness, count: int) -> bool:
    return await harness.consumers() == count


async def _submit(harness: Harness, fleet: Fleet, count: int, *, tokens: int) -> list[Job]:
    jobs = await fleet.submit_many(
        (prompt(f"cut {n} {tokens}", tokens=tokens) for n in range(count)), pool=harness.pool, stream=True
    )
    await harness.until_tokens([job.id for job in jobs])
    return jobs
