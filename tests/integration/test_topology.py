"""Exchanges, queues and bindings that somebody deletes while workers run come back, and nothing is lost."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from tests.conftest import Control
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    RunCommand,
    StartWorker,
    answer_to,
    eventually,
)
from tests.integration.raw_publisher import RawPublisher

from inferfleet.local.services import Services, ServicesChoice
from inferfleet.producer import Fleet
from inferfleet.schemas import JobState
from inferfleet.schemas.control import CancelJob
from inferfleet.schemas.control import control as orders
from inferfleet.schemas.errors import UnknownPoolError, UnknownWorkerError, WaitTimeoutError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import (
    CONTROL_EXCHANGE,
    DEAD_EXCHANGE,
    JOBS_EXCHANGE,
    control_queue,
    dead_queue,
    job_queue,
)
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.wire.rabbitmq.connection import Connection, open_amqp
from inferfleet.wire.redis.connection import command_pipeline, open_redis
from inferfleet.wire.redis.heartbeats import write_heartbeat
from inferfleet.wire.tasks import cancel_and_wait
from inferfleet.worker import topology
from inferfleet.worker.topology import Topology

Delete = Callable[[ForeignClient], Awaitable[object]]


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mended at once must not wait for the next look."""
    monkeypatch.setattr(topology, "WATCH_INTERVAL_S", 3600.0)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than in life."""
    monkeypatch.setattr(topology, "WATCH_INTERVAL_S", 0.1)


async def delete_dead_queue(foreign: ForeignClient) -> None:
    await foreign.channel.queue_delete(dead_queue(foreign.pool))


async def delete_dead_exchange(foreign: ForeignClient) -> None:
    await foreign.channel.exchange_delete(DEAD_EXCHANGE)


async def unbind_dead_queue(foreign: ForeignClient) -> None:
    await foreign.channel.queue_unbind(dead_queue(foreign.pool), DEAD_EXCHANGE, foreign.pool)


async def delete_jobs_exchange(foreign: ForeignClient) -> None:
    await foreign.channel.exchange_delete(JOBS_EXCHANGE)


async def unbind_job_queue(foreign: ForeignClient) -> None:
    await foreign.channel.queue_unbind(job_queue(foreign.pool), JOBS_EXCHANGE, foreign.pool)


async def delete_job_queue(foreign: ForeignClient) -> None:
    await foreign.channel.queue_delete(job_queue(foreign.pool))


async def delete_control_exchange(foreign: ForeignClient) -> None:
    await foreign.channel.exchange_delete(CONTROL_EXCHANGE)


async def run_a_job(fleet: Fleet, pool: str) -> None:
    job = await fleet.submit("hello", pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("delete", [delete_dead_queue, delete_dead_exchange, unbind_dead_queue])
async def test_a_dead_letter_finds_its_way_whatever_was_deleted(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str, delete: Delete
) -> None:
    await start_worker()
    await run_a_job(fleet, pool)
    await foreign.publish(b"before")
    assert (await foreign.dead_letter()).body == b"before"
    await delete(foreign)
    await foreign.publish(b"garbage")

    async def buried() -> bool:
        return b"garbage" in [letter.body for letter in await foreign.letters()]

    await eventually(buried)
    assert await foreign.waiting() == 0
    await run_a_job(fleet, pool)


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("delete", [delete_jobs_exchange, unbind_job_queue])
async def test_a_job_is_accepted_while_its_queue_is_there_whatever_else_was_deleted(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str, delete: Delete
) -> None:
    await start_worker()
    await run_a_job(fleet, pool)
    await delete(foreign)
    await run_a_job(fleet, pool)


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("delete", [delete_jobs_exchange, unbind_job_queue])
async def test_a_session_goes_on_while_its_queue_is_there_whatever_else_was_deleted(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str, delete: Delete
) -> None:
    session = fleet.session(f"s-{uuid4()}")
    jobs = [await session.send(text, pool=pool) for text in ("first", "second")]
    await delete(foreign)
    await start_worker()
    for job in jobs:
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_a_pool_without_a_queue_is_still_unknown(fleet: Fleet, foreign: ForeignClient) -> None:
    await delete_job_queue(foreign)
    with pytest.raises(UnknownPoolError):
        await fleet.submit("hello", pool=foreign.pool)


@pytest.mark.usefixtures("unwatched")
async def test_a_worker_whose_queue_is_deleted_declares_it_again(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    await run_a_job(fleet, pool)
    await delete_job_queue(foreign)

    async def is_accepted() -> bool:
        try:
            await run_a_job(fleet, pool)
        except UnknownPoolError:
            return False
        return True

    await eventually(is_accepted)


@pytest.mark.usefixtures("watched")
async def test_what_nobody_has_noticed_is_declared_again_in_time(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker(worker_id=f"{pool}-w")
    await run_a_job(fleet, pool)
    for delete in (delete_control_exchange, delete_jobs_exchange, delete_dead_exchange, delete_dead_queue):
        await delete(foreign)

    async def is_routed() -> bool:
        try:
            # With a client that declares nothing.
            await foreign.publish(b"", exchange=JOBS_EXCHANGE)
            await foreign.publish(b"", exchange=DEAD_EXCHANGE)
        except Exception:
            await foreign.reopen()
            return False
        return True

    await eventually(is_routed)
    await fleet.drain(f"{pool}-w", timeout_s=PATIENCE_S)
    await asyncio.wait_for(worker.running, PATIENCE_S)


@pytest.mark.usefixtures("unwatched")
async def test_while_no_dead_letter_is_taken_those_who_wait_are_in_nobodys_way(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(max_running=1, look_ahead=0)
    await run_a_job(fleet, pool)
    # A policy does the same.
    await delete_dead_queue(foreign)
    await foreign.channel.queue_declare(
        dead_queue(pool), durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await foreign.channel.queue_bind(dead_queue(pool), DEAD_EXCHANGE, pool)
    garbage = [b"garbage %d" % number for number in range(4)]
    for body in garbage:
        await foreign.publish(body)
    for _ in range(10):
        await run_a_job(fleet, pool)
    taken: list[bytes] = []

    async def all_came() -> bool:
        taken.extend(letter.body for letter in await foreign.letters())
        return len(taken) == len(garbage)

    await eventually(all_came)
    assert sorted(taken) == garbage


@pytest.mark.usefixtures("unwatched")
async def test_a_message_that_became_too_large_for_the_broker_waits_and_is_in_nobodys_way(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, control: Control, pool: str
) -> None:
    change = (
        "{{ok, N}} = application:get_env(rabbit, max_message_size), "
        "application:set_env(rabbit, max_message_size, {}), N."
    )
    large, message_id = b"x" * 60_000, new_job_id()
    await foreign.publish(large, message_id=message_id, reply_to="client")
    before = await control("eval", change.format(50_000))
    try:
        await start_worker(max_running=1, look_ahead=0)
        for _ in range(10):
            await run_a_job(fleet, pool)
        assert (await fleet.wait(message_id, timeout_s=PATIENCE_S)).state is JobState.FAILED
        assert await foreign.letters() == []
    finally:
        await control("eval", change.format(before.strip()))
    assert (await foreign.dead_letter()).body == large


# The worker's own queue, which only its own connection may delete


@pytest.fixture
async def connection(services: Services) -> AsyncIterator[Connection]:
    async with open_amqp(services.amqp_url, timeout_s=PATIENCE_S, name="test") as connection:
        yield connection


@pytest.mark.parametrize(
    "how", ["the queue", "the binding", "the exchange", "the channel", "a refusal", "nothing"]
)
async def test_orders_are_heard_again_whatever_was_deleted(
    services: Services,
    connection: Connection,
    fleet: Fleet,
    foreign: ForeignClient,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    # The end of a consumer or of a channel is noticed at once.
    at_once = how not in {"the binding", "the exchange"}
    monkeypatch.setattr(topology, "WATCH_INTERVAL_S", 3600.0 if at_once else 0.1)
    settings = WorkerSettings(amqp_url=services.amqp_url, pool=pool, worker_id=f"{pool}-w")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    watched = Topology(connection, settings, heard.put_nowait)
    await watched.declare()
    watching = asyncio.create_task(watched.watch())
    queue = control_queue(f"{pool}-w")
    async with connection.channel() as channel:
        match how:
            case "the queue":
                await (await channel.get_queue(queue)).delete(if_unused=False, if_empty=False)
            case "the binding":
                await (await channel.get_queue(queue)).unbind(CONTROL_EXCHANGE)
            case "the exchange":
                await delete_control_exchange(foreign)
            case "the channel":
                assert watched._listening is not None
                await watched._listening.close()
            case "a refusal":
                # RabbitMQ answers it by closing the channel.
                assert watched._listening is not None
                with pytest.raises(ChannelNotFoundEntity):
                    await watched._listening.declare_queue(f"{pool}-nowhere", passive=True)
            case _:
                pass
    order = CancelJob(job_id=new_job_id())

    async def is_heard() -> bool:
        await fleet._publisher.send(order)
        await asyncio.sleep(0.05)
        return not heard.empty()

    await eventually(is_heard)
    assert orders.validate_json(heard.get_nowait()) == order
    await cancel_and_wait(watching)


async def test_orders_with_properties_that_cannot_be_read_break_nothing(
    services: Services, connection: Connection, fleet: Fleet, raw: RawPublisher, pool: str
) -> None:
    if services.kind is ServicesChoice.EMBEDDED:
        pytest.skip("the embedded broker refuses at once what pamqp cannot read")
    settings = WorkerSettings(amqp_url=services.amqp_url, pool=pool, worker_id=f"{pool}-w")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await Topology(connection, settings, heard.put_nowait).declare()
    far_away = b"\x01kT" + b"\xff" * 8
    assert await raw.publish(
        1 << 13, struct.pack(">I", len(far_away)) + far_away, b"1", exchange=CONTROL_EXCHANGE
    )
    assert await raw.publish(0, b"", b"2", exchange=CONTROL_EXCHANGE)
    async with asyncio.timeout(PATIENCE_S):
        assert [await heard.get(), await heard.get()] == [b"1", b"2"]


# Draining


@pytest.mark.usefixtures("unwatched")
async def test_a_worker_whose_queue_of_orders_was_deleted_still_drains(
    fleet: Fleet, start_worker: StartWorker, control: Control, pool: str
) -> None:
    worker = await start_worker(worker_id=f"{pool}-w")
    await run_a_job(fleet, pool)
    queue = control_queue(f"{pool}-w")
    # Only its owner may delete it, or whoever may do anything.
    deleted = await control(
        "eval",
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)), '
        'rabbit_amqqueue:delete(Q, false, false, <<"test">>), deleted.',
    )
    assert "deleted" in deleted
    await fleet.drain(f"{pool}-w", timeout_s=PATIENCE_S)
    await asyncio.wait_for(worker.running, PATIENCE_S)


async def test_drain_names_the_workers_that_are_alive(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    await start_worker(worker_id=f"{pool}-alive")
    await run_a_job(fleet, pool)
    with pytest.raises(UnknownWorkerError, match=f"'{pool}-nobody' is alive; .*{pool}-alive") as caught:
        await fleet.drain(f"{pool}-nobody")
    assert f"{pool}-alive" in caught.value.alive


async def test_drain_returns_once_the_worker_drains(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    worker = await start_worker(worker_id=f"{pool}-w")
    await run_a_job(fleet, pool)
    await fleet.drain(f"{pool}-w", timeout_s=PATIENCE_S)
    assert worker.worker.phase is WorkerPhase.DRAINING
    await asyncio.wait_for(worker.running, PATIENCE_S)


async def test_drain_fails_if_the_worker_does_not_answer(
    fleet: Fleet, services: Services, inferfleet: RunCommand, pool: str
) -> None:
    now = datetime.now(UTC)
    deaf = Heartbeat(
        worker_id=f"{pool}-deaf",
        pool=pool,
        phase=WorkerPhase.READY,
        engine="simulated",
        model="m",
        version="1",
        started_at=now,
        seen_at=now,
    )
    async with open_redis(services.redis_url) as client:
        pipeline = command_pipeline(client, patience_s=None)
        running = asyncio.create_task(pipeline.run())
        await write_heartbeat(pipeline, deaf, ttl_s=600)
        await cancel_and_wait(running)
    with pytest.raises(WaitTimeoutError, match=f"'{pool}-deaf' did not answer the order to drain"):
        await fleet.drain(f"{pool}-deaf", timeout_s=0.2)
    ended = await inferfleet("worker", "drain", f"{pool}-deaf", "--timeout-s", "0.5")
    assert (ended.code, ended.out) == (1, "")
    assert f"worker '{pool}-deaf' did not answer the order to drain within 0.5 s" in ended.err
