"""Three RabbitMQ nodes: a fleet rides out the loss of each, and its clients do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from tests.integration.conftest import Connect, StartWorker, answer_to, eventually, slow_chat

from inferfleet.local.services.native import unavailable_reason
from inferfleet.local.services.rabbitmq_cluster import RabbitMQCluster
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess, port_mapper_binary, server_binary
from inferfleet.local.services.reaper import Reaper
from inferfleet.producer import Fleet
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.schemas.names import control_queue, dead_queue, job_queue
from inferfleet.schemas.settings import QueueType
from inferfleet.wire.rabbitmq import connection

RIDE_S = 100.0
"""How long a client waits for a broker, and a test for an end."""

PAUSE_S = 0.05
"""Between two jobs of a submitter: as fast as they can, they would leave no time for the start of a node."""

# A node takes a busy machine a minute to start.
pytestmark = pytest.mark.timeout(9 * RIDE_S)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQCluster]:
    server, port_mapper = server_binary(), port_mapper_binary()
    if server is None or port_mapper is None:
        pytest.skip(str(unavailable_reason()))
    with Reaper() as reaper:
        folder = tmp_path_factory.mktemp("cluster") / "rabbitmq"
        cluster = RabbitMQCluster(server=server, port_mapper=port_mapper, folder=folder, reaper=reaper)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def pool() -> str:
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def settings(cluster: RabbitMQCluster) -> dict[str, Any]:
    """What all clients and workers of the cluster are given."""
    return {"amqp_url": f"{cluster.url}?heartbeat=4", "queue_type": QueueType.QUORUM}


@pytest.fixture
async def fleet(connect: Connect, settings: dict[str, Any], pool: str) -> AsyncIterator[Fleet]:
    async with connect(**settings, patience_s=RIDE_S) as fleet:
        await fleet.declare_pool(pool)
        yield fleet


@asynccontextmanager
async def submitting(fleet: Fleet, pool: str) -> AsyncIterator[list[Job]]:
    """Submit jobs all the time; every one of them must be accepted and run in the end."""
    accepted: list[Job] = []
    over = asyncio.Event()

    async def submit() -> None:
        while not over.is_set():
            accepted.append(await fleet.submit("hello", pool=pool))
            await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(submit())
        await until_more(accepted)
        yield accepted
        await until_more(accepted)
        over.set()
    async with asyncio.timeout(RIDE_S):
        for job in accepted:
            assert (await fleet.wait(job)).text == answer_to(job)


async def until_more(accepted: list[Job], more: int = 20) -> None:
    """Wait until so many more are accepted."""
    before = len(accepted)

    async def there_are() -> bool:
        return len(accepted) >= before + more

    await eventually(there_are, within_s=RIDE_S)


async def control(node: RabbitMQProcess, *arguments: str) -> str:
    return (await asyncio.to_thread(node.control, *arguments)).strip()


async def home_of(
    queue: str, cluster: RabbitMQCluster, asked: RabbitMQProcess | None = None
) -> RabbitMQProcess:
    return await asyncio.to_thread(cluster.home_of, queue, asked=asked)


async def running(cluster: RabbitMQCluster, asked: RabbitMQProcess) -> int:
    return await asyncio.to_thread(cluster.running, asked=asked)


async def until_whole(cluster: RabbitMQCluster, asked: RabbitMQProcess) -> None:
    """Wait as an operator does before the next node is stopped."""
    await asyncio.to_thread(cluster.wait_until_whole, asked=asked, timeout_s=RIDE_S)


Fault = Callable[[RabbitMQCluster, RabbitMQProcess, Callable[[], Awaitable[None]]], Awaitable[None]]


async def restarted_in_turn(
    cluster: RabbitMQCluster, node: RabbitMQProcess, meanwhile: Callable[[], Awaitable[None]]
) -> None:
    for one, other in zip(cluster.nodes, [*cluster.nodes[1:], cluster.nodes[0]], strict=True):
        await asyncio.to_thread(one.stop)
        await asyncio.to_thread(one.start)
        await until_whole(cluster, other)


async def in_maintenance(
    cluster: RabbitMQCluster, node: RabbitMQProcess, meanwhile: Callable[[], Awaitable[None]]
) -> None:
    await asyncio.to_thread(node.tool, "rabbitmq-upgrade", "drain")
    await meanwhile()
    await asyncio.to_thread(node.tool, "rabbitmq-upgrade", "revive")


async def cut_off(
    cluster: RabbitMQCluster, node: RabbitMQProcess, meanwhile: Callable[[], Awaitable[None]]
) -> None:
    await asyncio.to_thread(cluster.part, node)
    other = next(one for one in cluster.nodes if one is not node)

    async def alone() -> bool:
        return await running(cluster, other) == len(cluster.nodes) - 1

    await eventually(alone)
    await meanwhile()
    await asyncio.to_thread(cluster.heal, node)


@pytest.mark.parametrize("fault", [restarted_in_turn, in_maintenance, cut_off])
async def test_no_client_notices_that_the_leader_of_its_queue_is(
    fault: Fault,
    fleet: Fleet,
    start_worker: StartWorker,
    settings: dict[str, Any],
    cluster: RabbitMQCluster,
    pool: str,
) -> None:
    await start_worker(**settings)
    async with submitting(fleet, pool) as accepted:
        leader = await home_of(job_queue(pool), cluster)
        await fault(cluster, leader, partial(until_more, accepted, 200))
        await until_whole(cluster, next(one for one in cluster.nodes if one is not leader))
    assert (await fleet.get(accepted[-1])).state is JobState.SUCCEEDED


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let who connects begin with the first host."""

    async def addresses(url: str) -> Any:
        return sorted(await places(url), key=lambda place: url.index(str(place[1].port)))

    places = connection._places
    monkeypatch.setattr(connection, "_places", addresses)


@pytest.mark.usefixtures("in_order")
async def test_a_killed_node_keeps_no_worker_from_starting_running_or_obeying(
    connect: Connect,
    fleet: Fleet,
    start_worker: StartWorker,
    settings: dict[str, Any],
    cluster: RabbitMQCluster,
    pool: str,
) -> None:
    leader = await home_of(job_queue(pool), cluster)
    others = [node for node in cluster.nodes if node is not leader]
    settings |= {"amqp_url": f"{cluster.url_of([leader, *others])}?heartbeat=4"}
    worker = await start_worker(**settings, worker_id=f"{pool}-w", engine_args={})
    # As pools with quorum queues had them once.
    late_pool = f"{pool}-late"
    async with await aio_pika.connect(leader.url) as old, old.channel() as channel:
        await channel.declare_queue(
            dead_queue(late_pool), durable=True, arguments={"x-queue-type": QueueType.CLASSIC}
        )
    classic = connect(amqp_url=settings["amqp_url"], queue_type=QueueType.CLASSIC)
    async with connect(**settings, patience_s=RIDE_S) as late, classic as impatient:
        await late.declare_pool(late_pool)
        await impatient.declare_pool(f"{pool}-classic")
        async with submitting(fleet, pool) as accepted:
            assert await home_of(control_queue(f"{pool}-w"), cluster, others[0]) is leader
            slow = await fleet.submit(slow_chat(tokens=100_000, step_s=0.05), pool=pool)
            leader.kill()
            await until_more(accepted, 200)

            with pytest.raises(ServiceUnreachableError, match="on a node that is down"):
                await impatient.submit("hello", pool=f"{pool}-classic")

            await start_worker(**settings | {"pool": late_pool})
            job = await late.submit("hello", pool=late_pool)
            assert (await late.wait(job)).text == answer_to(job)

            await fleet.cancel(slow)
            assert (await fleet.wait(slow, timeout_s=RIDE_S)).state is JobState.CANCELLED
            await asyncio.to_thread(leader.start)
    await worker.stop()


async def test_dead_letters_are_replicated_like_jobs(
    fleet: Fleet, cluster: RabbitMQCluster, pool: str
) -> None:
    types = await control(cluster.nodes[0], "list_queues", "name", "type", "--formatter", "csv")
    for queue in (job_queue(pool), dead_queue(pool)):
        assert f'"{queue}","quorum"' in types


async def test_a_queue_gets_a_member_on_a_node_that_joins_later(
    cluster: RabbitMQCluster, connect: Connect, settings: dict[str, Any], pool: str
) -> None:
    """Otherwise the loss of another node would stop the queue."""
    *others, away = cluster.nodes

    def members() -> int:
        queue = f'rabbit_misc:r(<<"/">>, queue, <<"{job_queue(pool)}">>)'
        look_up = f"{{ok, Q}} = rabbit_amqqueue:lookup({queue})"
        return int(
            others[0].control("eval", f"{look_up}, length(maps:get(nodes, amqqueue:get_type_state(Q))).")
        )

    await asyncio.to_thread(away.kill)
    try:
        await asyncio.to_thread(others[0].control, "forget_cluster_node", away.name)
        async with connect(**settings, patience_s=RIDE_S) as fleet:
            await fleet.declare_pool(pool)
        assert await asyncio.to_thread(members) == len(others)
    finally:
        await asyncio.to_thread(partial(away.start, keep_data=False))
    await asyncio.to_thread(cluster.wait_until_whole, asked=others[0], timeout_s=RIDE_S)
    assert await asyncio.to_thread(members) == len(cluster.nodes)
