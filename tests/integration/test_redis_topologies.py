"""Redis with Sentinels and Redis Cluster: failovers and moving slots are followed, in order."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.integration.certificates import Certificates, write_certificates
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    RunCommand,
    StartWorker,
    answer_to,
    eventually,
    slow_chat,
)
from tests.stores import plain_redis, running_pipeline

from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_cluster import RedisCluster
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.local.services.redis_sentinels import RedisSentinels
from inferfleet.producer import Fleet
from inferfleet.schemas import Job
from inferfleet.schemas.errors import ConfigurationError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.names import journal_key, reply_key
from inferfleet.wire.redis.cluster import ClusterClient, slot_of

RIDE_S = 100.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters, each with a replica."""
    if (server := redis_binary()) is None:
        pytest.skip("there is no redis-server")
    with Reaper() as reaper:
        folder = tmp_path_factory.mktemp("redis-cluster")
        cluster = RedisCluster(server=server, folder=folder, reaper=reaper, replicated=True)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinels]:
    if (server := redis_binary()) is None:
        pytest.skip("there is no redis-server")
    with Reaper() as reaper:
        folder = tmp_path_factory.mktemp("redis-sentinels")
        sentinels = RedisSentinels(server=server, folder=folder, reaper=reaper)
        try:
            sentinels.start()
            yield sentinels
        finally:
            sentinels.close()


async def all_done(fleet: Fleet, jobs: list[Job]) -> None:
    for job in jobs:
        assert (await fleet.wait(job, timeout_s=RIDE_S)).text == answer_to(job)


# Sentinels


async def test_a_failover_of_the_sentinels_is_followed_by_clients_and_workers(
    connect: Connect, start_worker: StartWorker, sentinels: RedisSentinels, pool: str
) -> None:
    await start_worker(redis_url=sentinels.url)
    async with connect(redis_url=sentinels.url, patience_s=RIDE_S) as fleet:
        await fleet.declare_pool(pool)
        slow = await fleet.submit(slow_chat(tokens=60, step_s=0.05), pool=pool)
        streaming = asyncio.create_task(_text_of(fleet, slow))
        await all_done(fleet, [await fleet.submit("hello", pool=pool) for _ in range(5)])
        await asyncio.to_thread(sentinels.fail_over)
        await all_done(fleet, [await fleet.submit("hello", pool=pool) for _ in range(20)])
        assert await asyncio.wait_for(streaming, RIDE_S) == answer_to(slow)
    await asyncio.to_thread(sentinels.wait_until_whole)


async def test_a_dead_master_is_replaced_without_a_lost_job(
    connect: Connect, start_worker: StartWorker, sentinels: RedisSentinels, pool: str
) -> None:
    await start_worker(redis_url=sentinels.url)
    async with connect(redis_url=sentinels.url, patience_s=RIDE_S) as fleet:
        await fleet.declare_pool(pool)
        master = await asyncio.to_thread(lambda: sentinels.master)
        await all_done(fleet, [await fleet.submit("hello", pool=pool) for _ in range(5)])
        master.kill()
        await all_done(fleet, [await fleet.submit("hello", pool=pool) for _ in range(20)])
    assert (await asyncio.to_thread(lambda: sentinels.master)) is not master
    await asyncio.to_thread(master.start)
    await asyncio.to_thread(sentinels.wait_until_whole)


async def test_a_service_that_the_sentinels_do_not_know_is_named(
    connect: Connect, sentinels: RedisSentinels
) -> None:
    with pytest.raises(ServiceUnreachableError, match="no master 'other': they know inferfleet"):
        async with connect(redis_url=sentinels.url.replace("/inferfleet/", "/other/")):
            pass


async def test_a_wrong_login_at_the_sentinels_is_a_refusal(
    connect: Connect, sentinels: RedisSentinels
) -> None:
    with pytest.raises(ServiceRefusedError, match="refuses the credentials"):
        async with connect(redis_url=f"{sentinels.url}?sentinel_username=nobody&sentinel_password=x"):
            pass


# A cluster


@pytest.fixture
async def clustered(connect: Connect, cluster: RedisCluster, pool: str) -> AsyncIterator[Fleet]:
    async with connect(redis_url=cluster.url, patience_s=RIDE_S) as fleet:
        await fleet.declare_pool(pool)
        yield fleet


@pytest.fixture
async def raw(cluster: RedisCluster) -> AsyncIterator[aioredis.Redis]:
    client = plain_redis(cluster.url)
    yield client
    await client.aclose()


async def _text_of(fleet: Fleet, job: Job) -> str:
    async for _ in fleet.stream(job):
        pass
    return (await fleet.wait(job)).text


async def test_a_fleet_on_a_cluster_does_all_that_it_does_elsewhere(
    clustered: Fleet, start_worker: StartWorker, cluster: RedisCluster, inferfleet: RunCommand, pool: str
) -> None:
    await start_worker(redis_url=cluster.url)
    jobs = await clustered.submit_many(["hello"] * 60, pool=pool)
    await all_done(clustered, jobs)
    streamed = [await clustered.submit("hello", pool=pool, stream=True) for _ in range(12)]
    assert await asyncio.gather(*(_text_of(clustered, job) for job in streamed)) == [
        answer_to(job) for job in streamed
    ]
    session = clustered.session(f"s-{uuid4().hex}")
    for text in ("first", "second"):
        await clustered.wait(await session.send(text, pool=pool), timeout_s=PATIENCE_S)
    assert len(await session.history()) == 4
    once = [await clustered.submit("once", pool=pool, idempotency_key=pool) for _ in range(2)]
    assert once[0].id == once[1].id
    listed = await inferfleet(
        "session", "list", "--json", "--limit", "100000", environment={"INFERFLEET_REDIS_URL": cluster.url}
    )
    assert session.id in [one["id"] for one in json.loads(listed.out)]
    assert [worker.pool for worker in await clustered.workers() if worker.pool == pool] == [pool]


async def test_a_slot_that_moves_is_followed_and_its_commands_keep_their_order(
    cluster: RedisCluster, raw: aioredis.Redis
) -> None:
    key = f"order-{uuid4().hex}"
    slot = slot_of(key)
    async with running_pipeline(cluster.url, patience_s=RIDE_S) as pipeline:
        sent: list[Any] = []
        over = asyncio.Event()

        async def push() -> None:
            while not over.is_set():
                # Each may be sent twice: a line of a stream that is not newer than the last is refused.
                for _ in range(5):
                    sent.append(pipeline.enqueue("XADD", key, f"{len(sent) + 1}-0", "n", ""))
                await asyncio.sleep(0)
                if len(sent) % 500 == 0:
                    await asyncio.wait([sent[-1]])

        pushing = asyncio.create_task(push())
        for _ in range(4):
            before = len(sent)
            source = await asyncio.to_thread(cluster.owner, slot)
            target = next(node for node in cluster.masters if node is not source)
            await asyncio.to_thread(cluster.move_slot, slot, source=source, target=target)
            await eventually(partial(_more, sent, before))
        over.set()
        await pushing
        answers = await asyncio.gather(*sent, return_exceptions=True)
    lines: Any = await raw.xrange(key)
    # What was in flight may have been sent twice, and is refused the second time. Nothing is missing.
    assert [int(line.partition(b"-")[0]) for line, _ in lines] == list(range(1, len(sent) + 1))
    assert sum(isinstance(answer, BaseException) for answer in answers) < len(answers) / 4
    await raw.delete(key)


async def _more(sent: list[Any], before: int) -> bool:
    return len(sent) > before + 500


async def test_a_key_that_has_gone_ahead_of_its_slot_is_found(
    cluster: RedisCluster, raw: aioredis.Redis
) -> None:
    key = f"ahead-{uuid4().hex}"
    await raw.set(key, "here")
    source = await asyncio.to_thread(cluster.owner, slot_of(key))
    target = next(node for node in cluster.masters if node is not source)
    async with running_pipeline(cluster.url, patience_s=RIDE_S) as pipeline:
        assert await pipeline.execute("GET", key) == b"here"
        await asyncio.to_thread(cluster.begin_move, slot_of(key), source=source, target=target)
        assert await pipeline.execute("GET", key) == b"here"
        answers = await asyncio.gather(*(pipeline.enqueue("INCR", f"{{{key}}}:n") for _ in range(50)))
        assert answers == list(range(1, 51))
        await asyncio.to_thread(cluster.finish_move, slot_of(key), source=source, target=target)
        assert await pipeline.execute("INCR", f"{{{key}}}:n") == 51


async def test_a_stream_goes_on_while_its_slot_moves(
    clustered: Fleet, start_worker: StartWorker, cluster: RedisCluster, pool: str
) -> None:
    await start_worker(redis_url=cluster.url)
    job = await clustered.submit(slow_chat(tokens=60, step_s=0.05), pool=pool, stream=True)
    reading = asyncio.create_task(_text_of(clustered, job))
    slot = slot_of(job.id)
    for _ in range(2):
        source = await asyncio.to_thread(cluster.owner, slot)
        target = next(node for node in cluster.masters if node is not source)
        await asyncio.to_thread(cluster.move_slot, slot, source=source, target=target)
    assert await asyncio.wait_for(reading, RIDE_S) == answer_to(job)
    assert (await clustered.get(job)).attempt == 1


async def test_a_failover_of_a_cluster_is_followed_by_those_who_wait(
    connect: Connect, start_worker: StartWorker, cluster: RedisCluster, pool: str
) -> None:
    await start_worker(redis_url=cluster.url)
    async with connect(redis_url=cluster.url, patience_s=RIDE_S, client_id=pool) as fleet:
        await fleet.declare_pool(pool)
        jobs = [
            await fleet.submit(slow_chat(tokens=60, step_s=0.05), pool=pool, stream=stream)
            for stream in (True, False)
        ]
        streaming = asyncio.create_task(_text_of(fleet, jobs[0]))
        waiting = asyncio.create_task(fleet.wait(jobs[1], timeout_s=RIDE_S))
        for key in (journal_key(jobs[0].id), reply_key(pool)):
            await asyncio.to_thread(cluster.fail_over, slot_of(key))
        assert await asyncio.wait_for(streaming, RIDE_S) == answer_to(jobs[0])
        assert (await waiting).text == answer_to(jobs[1])


async def test_a_cancelled_look_at_the_map_of_a_cluster_leaves_no_connection(cluster: RedisCluster) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for turns in range(150):
            client = ClusterClient([f"redis://127.0.0.1:{cluster.nodes[0].port}"], {})
            looking = asyncio.create_task(client.refresh())
            for _ in range(turns):
                await asyncio.sleep(0)
            for _ in range(2):
                looking.cancel()
                await asyncio.sleep(0)
            await asyncio.gather(looking, return_exceptions=True)
            await client.aclose()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def suspend(node: RedisProcess) -> None:
    os.kill(node.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, node.pid, os.WSTOPPED | os.WNOWAIT)


def kill(node: RedisProcess) -> None:
    """End a node at once. Not `RedisProcess.kill` itself, in whose place a mutation puts nothing."""
    node.kill()


@asynccontextmanager
async def without(
    cluster: RedisCluster, node: RedisProcess, end: Callable[[RedisProcess], None] = suspend
) -> AsyncIterator[None]:
    """Take a node away until the end of the block."""
    end(node)
    try:
        yield
    finally:
        node.kill()
        await asyncio.to_thread(cluster.start)


@pytest.mark.parametrize("end", [kill, suspend], ids=["dead", "suspended"])
async def test_a_master_of_a_cluster_is_replaced_without_a_lost_job(
    clustered: Fleet,
    start_worker: StartWorker,
    cluster: RedisCluster,
    pool: str,
    end: Callable[[RedisProcess], None],
) -> None:
    await start_worker(redis_url=cluster.url)
    await all_done(clustered, await clustered.submit_many(["hello"] * 30, pool=pool))
    gone = await asyncio.to_thread(cluster.owner, 0)
    async with without(cluster, gone, end):
        await all_done(clustered, await clustered.submit_many(["hello"] * 60, pool=pool))
    assert (await asyncio.to_thread(cluster.owner, 0)) is not gone


async def test_writes_are_on_the_replicas_of_all_nodes_or_on_too_few_of_one(
    cluster: RedisCluster,
) -> None:
    async with running_pipeline(cluster.url, patience_s=None) as pipeline:
        keys = [f"{{{uuid4().hex}}}" for _ in range(30)]

        async def write() -> None:
            await asyncio.gather(*(pipeline.enqueue("SET", key, "x", "EX", 60) for key in keys))

        await write()
        connections = pipeline.connections
        await write()
        assert await pipeline.execute("WAIT", 1, 1000 * int(PATIENCE_S)) == 1
        assert pipeline.connections == connections

        # Nobody knows which writes the replica of a master had that dies.
        async with without(cluster, await asyncio.to_thread(cluster.owner, slot_of(keys[0]))):
            # If the pipeline knows already that it is gone, it does not ask.
            assert await pipeline.execute("WAIT", 1, 1000 * int(PATIENCE_S)) in (0, 1)
            assert pipeline.connections > connections
            await write()


async def test_the_node_that_is_asked_first_counts_before_any_names_another(cluster: RedisCluster) -> None:
    node = await asyncio.to_thread(cluster.owner, slot_of("key"))
    async with running_pipeline(f"redis+cluster://127.0.0.1:{node.port}", patience_s=None) as pipeline:
        await pipeline.execute("SET", "key", "x", "EX", 60)
        assert await pipeline.execute("WAIT", 1, 1000 * int(PATIENCE_S)) == 1


async def test_what_waits_at_the_end_of_a_client_gets_an_error(cluster: RedisCluster) -> None:
    async with running_pipeline(cluster.url, patience_s=None) as pipeline:
        assert await pipeline.execute("PING")
        keys = [f"{{{uuid4().hex}}}" for _ in range(30)]
        waiting = [pipeline.enqueue("GET", key) for key in keys]
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENCE_S)
    assert {type(answer) for answer in answers} <= {type(None), ServiceUnreachableError}


async def test_a_missing_right_is_found_on_whichever_node_it_is(
    connect: Connect, cluster: RedisCluster, pool: str
) -> None:
    node = await asyncio.to_thread(cluster.owner, 10_000)
    async with aioredis.Redis.from_url(node.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "default", "-xadd")
        try:
            with pytest.raises(ServiceRefusedError, match=rf"the node 127.0.0.1:{node.port} .*XADD"):
                async with connect(redis_url=cluster.url):
                    pass
        finally:
            await admin.execute_command("ACL", "SETUSER", "default", "+@all")
        await admin.config_set("maxmemory-policy", "allkeys-lru")
        await admin.config_set("maxmemory", "1gb")
        try:
            with pytest.raises(ConfigurationError, match="allkeys-lru"):
                async with connect(redis_url=cluster.url):
                    pass
        finally:
            await admin.config_set("maxmemory", "0")
            await admin.config_set("maxmemory-policy", "noeviction")


async def test_the_right_form_of_the_address_is_told(
    connect: Connect, cluster: RedisCluster, services: Services
) -> None:
    with pytest.raises(ServiceRefusedError, match=r"redis\+cluster://"):
        async with connect(redis_url=cluster.nodes[0].url):
            pass
    alone = services.redis_url.replace("redis://", "redis+cluster://")
    with pytest.raises(ServiceRefusedError, match="cluster support disabled"):
        async with connect(redis_url=alone):
            pass


async def test_a_client_that_knows_one_dead_and_one_live_node_finds_all(
    cluster: RedisCluster, raw: aioredis.Redis
) -> None:
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.masters[1].port}"
    async with running_pipeline(url, patience_s=0) as pipeline:
        keys = [f"{{{uuid4().hex}}}" for _ in range(30)]
        await asyncio.gather(*(pipeline.enqueue("SET", key, "x", "EX", 60) for key in keys))
        assert await asyncio.gather(*(pipeline.enqueue("GET", key) for key in keys)) == [b"x"] * 30


async def test_a_node_that_has_lost_its_cluster_is_left_for_the_others(
    cluster: RedisCluster, tmp_path: Path
) -> None:
    server = redis_binary()
    assert server is not None
    with Reaper() as reaper:
        configuration = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
        alone = RedisProcess(server=server, folder=tmp_path, reaper=reaper, configuration=configuration)
        await asyncio.to_thread(alone.start)
        url = cluster.url.replace("://", f"://127.0.0.1:{alone.port},")
        async with running_pipeline(url, patience_s=RIDE_S) as pipeline:
            key = uuid4().hex
            assert await asyncio.wait_for(pipeline.execute("SET", key, "x", "EX", 60), PATIENCE_S)
        alone.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return write_certificates(tmp_path / "certificates")


@pytest.fixture
def over_tls(tmp_path: Path, certificates: Certificates) -> Iterator[RedisCluster]:
    server = redis_binary()
    assert server is not None
    tls = {
        "tls-ca-cert-file": str(certificates.ca),
        "tls-cert-file": str(certificates.server),
        "tls-key-file": str(certificates.server_key),
    }
    with Reaper() as reaper:
        cluster = RedisCluster(server=server, folder=tmp_path, reaper=reaper, tls=tls)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


async def test_a_cluster_is_reached_over_tls(
    connect: Connect, start_worker: StartWorker, certificates: Certificates, over_tls: RedisCluster, pool: str
) -> None:
    hosts = ",".join(f"localhost:{port}" for port in over_tls.tls_ports)
    options = {
        "ssl_ca_certs": certificates.ca,
        "ssl_certfile": certificates.client,
        "ssl_keyfile": certificates.client_key,
    }
    url = f"rediss+cluster://{hosts}?{urlencode(options)}"
    await start_worker(redis_url=url)
    async with connect(redis_url=url, patience_s=RIDE_S) as fleet:
        await fleet.declare_pool(pool)
        await all_done(fleet, await fleet.submit_many(["hello"] * 30, pool=pool))
    with pytest.raises(ServiceUnreachableError, match="certificate"):
        async with connect(redis_url=f"rediss+cluster://{hosts}"):
            pass
