"""Where a Redis is, what it is, and what its users may do: whatever is wrong is told at the start."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    ForeignClient,
    RunCommand,
    StartGateway,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    chat,
    eventually,
    kinds_of,
    read_all,
)
from tests.integration.own_redis.conftest import StartRedis, as_user, set_user

from inferfleet.agents import AgentRuns
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.schemas.errors import (
    ConfigurationError,
    ServiceRefusedError,
)
from inferfleet.schemas.names import job_queue
from inferfleet.wire.redis.access import PRODUCER, WORKER, Access
from inferfleet.wire.redis.connection import open_redis

pytestmark = pytest.mark.skipif(redis_binary() is None, reason="no redis-server here")


PAGE = Path(__file__).parents[3] / "docs" / "reference" / "redis.md"


# Addresses


async def test_a_whole_fleet_works_over_a_unix_socket(
    start_redis: StartRedis,
    connect: Connect,
    inferfleet: RunCommand,
    start_worker_process: StartWorkerProcess,
    pool: str,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = start_redis(unixsocket=f"{folder}/redis.sock")
        async with aioredis.Redis.from_url(server.url) as client:
            await client.config_set("requirepass", "secret")
        url = f"unix://:secret@{folder}/redis.sock?db=3"
        async with connect(redis_url=url) as fleet:
            await fleet.declare_pool(pool)
            worker = await start_worker_process(redis_url=url, worker_id=f"{pool}-w")
            job = await fleet.submit("hello", pool=pool, stream=True)
            assert kinds_of(await read_all(fleet.stream(job)))[-1] == "finished"
            assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
            shown = await inferfleet("get", job.id, environment={"INFERFLEET_REDIS_URL": url})
            assert shown.code == 0
            assert [it.worker_id for it in await fleet.workers()] == [f"{pool}-w"]
            assert await worker.stop() == 0
        async with aioredis.Redis.from_url(url) as client:
            assert await client.exists(f"inferfleet:job:{{{job.id}}}")


WRONG = [
    ("redis://127.0.0.1/0?decode_responses=true", "'decode_responses'"),
    ("redis://127.0.0.1/0?socket_timeout=1", "'socket_timeout'"),
    ("redis://127.0.0.1/0?colour=blue", "'colour'"),
    ("redis://127.0.0.1/0?max_connections=many", "'max_connections'"),
    ("redis://127.0.0.1/?db=first", "'first'"),
    ("redis://127.0.0.1/?db=-1", "'-1'"),
    ("redis://127.0.0.1/?db=", "without a value"),
    ("redis://127.0.0.1/first", "'first'"),
    ("redis://127.0.0.1/0/1", "'0/1'"),
    ("redis://127.0.0.1:99999/0", "not an address"),
    ("redis://127.0.0.1/0?ssl_ca_certs=/etc/hosts", "needs rediss://"),
    ("rediss://127.0.0.1/0?ssl_ca_certs=/nowhere/ca.pem", "'/nowhere/ca.pem'"),
    ("rediss://127.0.0.1/0?ssl_ca_certs=/etc/hosts", "cannot be used"),
    ("rediss://127.0.0.1/0?ssl_cert_reqs=maybe", "maybe"),
    ("rediss://127.0.0.1/0?ssl_min_version=high", "ssl_min_version"),
    ("unix://run/redis.sock", "unix:///run/redis/redis.sock"),
    ("unix://", "unix:///run/redis/redis.sock"),
]


@pytest.mark.parametrize(("url", "told"), WRONG)
async def test_an_address_that_cannot_be_is_a_clear_error(connect: Connect, url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(told)) as caught:
        async with connect(redis_url=url):
            pass
    assert "INFERFLEET_REDIS_URL" in str(caught.value)


async def test_a_wrong_address_in_a_file_is_told_in_the_same_way(connect: Connect, tmp_path: Path) -> None:
    file = tmp_path / "redis-url"
    file.write_text("redis://:hunter2@127.0.0.1/0?colour=blue")
    with pytest.raises(ConfigurationError, match="'colour'") as caught:
        async with connect(redis_url=file.as_uri()):
            pass
    assert "hunter2" not in str(caught.value)


async def test_a_command_and_a_worker_end_with_code_2_at_a_wrong_address(
    inferfleet: RunCommand, start_worker_process: StartWorkerProcess
) -> None:
    url = "redis://127.0.0.1/0?colour=blue"
    ended = await inferfleet("get", "x", environment={"INFERFLEET_REDIS_URL": url})
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    worker = await start_worker_process(redis_url=url)
    assert await worker.ended() == 2
    assert "Traceback" not in worker.log


# Rights


def every_need() -> list[Any]:
    return [
        pytest.param(access, command, id=f"{name}-{command}")
        for name, access in (("producer", PRODUCER), ("worker", WORKER))
        for command in sorted(
            {command for commands in access.commands.values() for command in commands}
            | {"EVALSHA", "SCRIPT"}
            | ({"XREAD"} if access.reads_blocked else set())
        )
    ]


async def enter(url: str, access: Access) -> None:
    async with open_redis(url, access=access):
        pass


@pytest.mark.parametrize(
    "access", [PRODUCER, WORKER, replace(WORKER, waits=True)], ids=["producer", "worker", "waiting worker"]
)
async def test_every_right_that_is_missing_is_named_at_the_start(
    own_redis: RedisProcess, operator: aioredis.Redis, access: Access
) -> None:
    url = as_user(own_redis.url, "someone")
    await set_user(operator, "~inferfleet:*", "+@all")
    await enter(url, access)
    needed = {command for commands in access.commands.values() for command in commands}
    needed |= {"EVALSHA", "SCRIPT"} | ({"XREAD"} if access.reads_blocked else set())
    needed |= {"WAIT"} if access.waits else set()
    for command in sorted(needed):
        await set_user(operator, "~inferfleet:*", "+@all", f"-{command.lower()}")
        with pytest.raises(
            ServiceRefusedError, match=rf"refuses .*\b{command}\b.* permission|can't run"
        ) as caught:
            await enter(url, access)
        assert "docs/reference/redis.md" in str(caught.value)
    for pattern in access.commands:
        others = [f"~{other}" for other in access.commands if other != pattern]
        await set_user(operator, *others, "+@all")
        with pytest.raises(ServiceRefusedError, match=re.escape(pattern)):
            await enter(url, access)


async def test_the_check_leaves_nothing_behind_and_nobody_out(
    own_redis: RedisProcess, operator: aioredis.Redis
) -> None:
    await operator.zadd("inferfleet:workers", {"somebody": 0})
    for access in (PRODUCER, WORKER):
        await enter(own_redis.url, access)
    assert await operator.keys("*") == [b"inferfleet:workers"]
    assert await operator.zrange("inferfleet:workers", 0, -1) == [b"somebody"]


def documented_rules() -> dict[str, list[str]]:
    """The users that the page tells to make, each with its rules."""
    commands = re.findall(r"^ACL SETUSER (\S+) on >\S+ ((?:.*\\\n)*.*)$", PAGE.read_text(), re.MULTILINE)
    return {user: rules.replace("\\\n", " ").split() for user, rules in commands}


def paragraph_of(beginning: str) -> str:
    """The paragraph of the page that begins with these words."""
    (paragraph,) = re.findall(rf"^{re.escape(beginning)}.*?\n\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(paragraph)


async def test_the_rights_on_the_page_are_enough_for_all_that_a_fleet_does(
    own_redis: RedisProcess,
    operator: aioredis.Redis,
    connect: Connect,
    foreign: ForeignClient,
    start_worker: StartWorker,
    pool: str,
) -> None:
    rules = documented_rules()
    for user in ("producer", "worker"):
        await set_user(operator, *rules[user], user=user)
    await operator.execute_command("ACL", "LOG", "RESET")
    async with connect(redis_url=as_user(own_redis.url, "producer")) as fleet:
        await fleet.declare_pool(pool)
        queued = await fleet.submit("never runs", pool=pool)
        assert await fleet.cancel(queued) == "cancelled"
        lost = await fleet.submit("lost", pool=pool)
        await foreign.channel.queue_purge(job_queue(pool))
        worker = await start_worker(redis_url=as_user(own_redis.url, "worker"), sweep_interval_s=0.4)
        assert (await fleet.wait(lost, timeout_s=PATIENCE_S)).text == answer_to(lost)
        one = await fleet.submit("hello", pool=pool, stream=True, idempotency_key=f"{pool}-key")
        again = await fleet.submit("hello", pool=pool, stream=True, idempotency_key=f"{pool}-key")
        assert again.id == one.id
        assert kinds_of(await read_all(fleet.stream(one)))[-1] == "finished"
        many = await fleet.submit_many(["a", "b"], pool=pool)
        assert len(await fleet.wait_many(many, timeout_s=PATIENCE_S)) == 2
        assert all((await fleet.get_many(many)).values())
        session = fleet.session(f"{pool}-s")
        await session.configure(idle_ttl_s=60)
        turns = [await session.send(text, pool=pool) for text in ("one", "two")]
        await fleet.wait_many(turns, timeout_s=PATIENCE_S)
        assert len(await session.history()) == 4
        assert await session.patch_state({"a": 1}) == 1
        forked = await session.fork(f"{pool}-f")
        assert sorted(await fleet.sessions()) == sorted((session.id, forked.id))
        assert await session.delete()
        assert [it.worker_id for it in await fleet.workers()]
        # Redis forgets its scripts: both may teach it again.
        await operator.script_flush()
        again = await fleet.submit("again", pool=pool)
        assert (await fleet.wait(again, timeout_s=PATIENCE_S)).text == answer_to(again)
        await worker.stop()
        assert await fleet.workers() == []
    assert await operator.execute_command("ACL", "LOG") == []


async def test_the_rights_on_the_page_are_enough_for_a_gateway_with_batches(
    own_redis: RedisProcess,
    operator: aioredis.Redis,
    start_gateway: StartGateway,
    start_worker: StartWorker,
    pool: str,
    tmp_path: Path,
) -> None:
    rules = documented_rules()
    await set_user(operator, *rules["worker"], user="worker")
    await set_user(operator, *rules["producer"], user="gateway")
    await start_worker(redis_url=as_user(own_redis.url, "worker"))
    url = as_user(own_redis.url, "gateway")
    gateway = await start_gateway(redis_url=url, files_url=str(tmp_path), max_batches=1)
    await operator.execute_command("ACL", "LOG", "RESET")
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=PATIENCE_S) as client:
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat("hello")}
        content = orjson.dumps(line)
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        # The second one looks whether the first still counts.
        for _ in range(2):
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )

            async def has_ended(batch_id: str = batch.id) -> bool:
                return (await client.batches.retrieve(batch_id)).status == "completed"

            await eventually(has_ended)
        assert len((await client.batches.list()).data) == 2
    assert await operator.execute_command("ACL", "LOG") == []


async def test_the_rights_on_the_page_are_enough_for_orders_to_workers(
    own_redis: RedisProcess,
    operator: aioredis.Redis,
    inferfleet: RunCommand,
    start_worker: StartWorker,
    pool: str,
) -> None:
    sentences = paragraph_of("`inferfleet worker drain` needs").split(". ")
    keys = "~inferfleet:worker*"
    drain, swap = [re.findall(r"`(\+[^`]*)`", sentence) for sentence in sentences[:2]]
    await set_user(operator, keys, *" ".join(drain).split(), user="drain")
    on_workers, on_pools = swap
    await set_user(operator, keys, *on_workers.split(), f"({on_pools} ~inferfleet:pool:*)", user="swap")
    await start_worker(redis_url=own_redis.url, worker_id=f"{pool}-w")
    await operator.execute_command("ACL", "LOG", "RESET")
    for user, told, command in (
        ("swap", "done, probe hash", ("model", "swap", "--pool", pool, "--model", "b", "--allow-rename")),
        ("drain", "", ("worker", "drain", f"{pool}-w")),
    ):
        ended = await inferfleet(*command, environment={"INFERFLEET_REDIS_URL": as_user(own_redis.url, user)})
        assert (ended.code, told in ended.out) == (0, True), ended
    ended = await inferfleet(
        *("worker", "drain", "nobody"), environment={"INFERFLEET_REDIS_URL": as_user(own_redis.url, "drain")}
    )
    assert "nobody" in ended.err
    assert await operator.execute_command("ACL", "LOG") == []


async def test_only_clients_of_agents_need_the_rights_on_their_keys(
    own_redis: RedisProcess, operator: aioredis.Redis, connect: Connect, pool: str
) -> None:
    async def start_run() -> tuple[str, ...]:
        async with connect(redis_url=as_user(own_redis.url, "someone")) as fleet:
            await fleet.submit("hello", pool=pool)
            snapshot = await fleet.watch.snapshot()
            assert (snapshot.unreachable, [it.pool for it in snapshot.pools]) == ({}, [pool])
            await AgentRuns(fleet).start("clerk", "hello", queue=pool)
            return tuple(it.queue for it in (await fleet.watch.snapshot()).agents)

    async with connect(redis_url=own_redis.url) as fleet:
        await fleet.declare_pool(pool)
    await set_user(operator, "~inferfleet:[^a]*", "+@all")
    with pytest.raises(ServiceRefusedError, match="NOPERM"):
        await start_run()
    assert await operator.keys("inferfleet:run:*") == []
    patterns = re.findall(r"`(~[^`]+)`", paragraph_of("Agents and whoever "))
    await set_user(operator, "~inferfleet:[^a]*", *patterns, "+@all")
    assert await start_run() == (pool,)


async def test_a_user_who_may_not_run_scripts_is_told_at_the_start(
    own_redis: RedisProcess,
    operator: aioredis.Redis,
    inferfleet: RunCommand,
    start_worker_process: StartWorkerProcess,
) -> None:
    await set_user(operator, "~inferfleet:*", "+@all", "-evalsha")
    url = as_user(own_redis.url, "someone")
    ended = await inferfleet("get", "x", environment={"INFERFLEET_REDIS_URL": url})
    assert (ended.code, ended.out, ended.err.count("\n")) == (3, "", 1)
    assert "EVALSHA" in ended.err
    worker = await start_worker_process(redis_url=url)
    assert await worker.ended() == 3
    assert "EVALSHA" in worker.log
    assert "Traceback" not in worker.log + ended.err
    assert "secret" not in worker.log + ended.err


# Mode


@pytest.mark.parametrize("covered", ["no slots", "all slots"])
async def test_a_node_of_a_cluster_is_refused_at_once(
    start_redis: StartRedis,
    connect: Connect,
    start_worker_process: StartWorkerProcess,
    covered: str,
) -> None:
    node = start_redis(cluster_enabled="yes", cluster_port=str(free_port()), appendonly="no")
    async with aioredis.Redis.from_url(node.url) as client:
        if covered == "all slots":
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def is_up() -> bool:
                state: dict[str, str] = await client.execute_command("CLUSTER INFO")
                return state["cluster_state"] == "ok"

            await eventually(is_up)
    with pytest.raises(ServiceRefusedError, match=r"Redis Cluster"):
        async with connect(redis_url=node.url):
            pass
    if covered == "all slots":
        worker = await start_worker_process(redis_url=node.url)
        assert await worker.ended() == 3
        assert "Redis Cluster" in worker.log
