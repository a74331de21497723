"""What Redis refuses is an error of ours, with its own words, for whoever asks or waits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import hiredis
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    RunCommand,
    StartWorker,
    StartWorkerProcess,
    answer_to,
    eventually,
)
from tests.integration.own_redis.conftest import StartRedis, as_user, set_user

from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.schemas.errors import (
    ServiceRefusedError,
)
from inferfleet.wire.redis.replies import wake

pytestmark = pytest.mark.skipif(redis_binary() is None, reason="no redis-server here")


# Refusals of everything


class Refusing:
    """A port at which each command is refused, until ``let`` is set; then it leads to Redis."""

    def __init__(self, url: str, text: str) -> None:
        self._to = urlsplit(url)
        self._text = text
        self.let = False
        self.refused = asyncio.Event()
        self.port = free_port()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return self._to._replace(netloc=f"127.0.0.1:{self.port}").geturl()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError):
            if self.let:
                back, on = await asyncio.open_connection(self._to.hostname, self._to.port)
                self._writers.add(on)
                await asyncio.gather(_copy(reader, on), _copy(back, writer))
                return
            commands = hiredis.Reader()
            while data := await reader.read(65536):
                commands.feed(data)
                while commands.gets() is not False:
                    writer.write(f"-{self._text}\r\n".encode())
                    self.refused.set()
                if self.let:
                    writer.close()

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def refusing(url: str, text: str) -> AsyncIterator[Refusing]:
    port = Refusing(url, text)
    async with await asyncio.start_server(port.serve, "127.0.0.1", port.port):
        try:
            yield port
        finally:
            await port.close()


PASSING = [
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "ERR max number of clients reached",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
]

LASTING = [
    ("NOAUTH Authentication required.", "credentials"),
    ("WRONGPASS invalid username-password pair or user is disabled.", "credentials"),
    ("NOPERM this user has no permissions to run the 'get' command", "docs/reference/redis.md"),
    ("MOVED 3999 127.0.0.1:6381", "Redis Cluster"),
    ("ERR unknown command 'EVALSHA', with args beginning with:", "disabled"),
    ("ERR DB index is out of range", "number of the database"),
]


@pytest.mark.parametrize("text", PASSING, ids=lambda text: text.split()[0])
async def test_what_passes_is_told_in_the_words_of_redis_and_waited_out(
    connect: Connect, own_redis: RedisProcess, pool: str, text: str
) -> None:
    async with refusing(own_redis.url, text) as port:
        with pytest.raises(ServiceRefusedError, match=re.escape(text.removeprefix("ERR "))) as caught:
            async with connect(redis_url=port.url):
                pass
        assert "for now" in str(caught.value)
        port.refused.clear()

        async def come_in() -> str:
            async with connect(redis_url=port.url, patience_s=PATIENCE_S) as fleet:
                await fleet.declare_pool(pool)
                return (await fleet.submit("hello", pool=pool)).id

        coming = asyncio.create_task(come_in())
        await asyncio.wait_for(port.refused.wait(), PATIENCE_S)
        assert not coming.done()
        port.let = True
        assert await asyncio.wait_for(coming, PATIENCE_S)


@pytest.mark.parametrize(("text", "advice"), LASTING, ids=lambda text: text.split()[0])
async def test_what_lasts_is_told_at_once_whatever_the_patience(
    connect: Connect, own_redis: RedisProcess, text: str, advice: str
) -> None:
    async with refusing(own_redis.url, text) as port:
        with pytest.raises(ServiceRefusedError, match=re.escape(text.split(maxsplit=1)[1])) as caught:
            async with asyncio.timeout(PATIENCE_S), connect(redis_url=port.url, patience_s=10 * PATIENCE_S):
                pass
        assert advice in str(caught.value)
        assert "for now" not in str(caught.value)


async def test_a_worker_waits_for_a_redis_that_loads_its_data(
    own_redis: RedisProcess, start_worker_process: StartWorkerProcess
) -> None:
    async with refusing(own_redis.url, PASSING[0]) as port:
        worker = await start_worker_process(redis_url=port.url, connect_timeout_s=str(PATIENCE_S))
        await asyncio.wait_for(port.refused.wait(), PATIENCE_S)
        port.let = True
        await worker.logged("ready")
        assert await worker.stop() == 0


# Refusals at work


async def refuse_writes(operator: aioredis.Redis) -> None:
    await operator.config_set("maxmemory", 1)


async def test_full_memory_is_told_in_the_words_of_redis_and_whoever_reads_goes_on(
    own_redis: RedisProcess, operator: aioredis.Redis, connect: Connect, inferfleet: RunCommand, pool: str
) -> None:
    async with (
        connect(redis_url=own_redis.url) as fleet,
        connect(redis_url=own_redis.url, patience_s=PATIENCE_S) as patient,
    ):
        await fleet.declare_pool(pool)
        job = await fleet.submit("hello", pool=pool)
        await refuse_writes(operator)
        for work in (
            lambda: fleet.submit("hello", pool=pool),
            lambda: fleet.session("s").update_state({}, version=0),
            lambda: fleet.submit("hello", pool=pool, idempotency_key="k"),
        ):
            with pytest.raises(ServiceRefusedError, match=r"OOM command not allowed .*maxmemory"):
                await asyncio.wait_for(work(), PATIENCE_S)
        # A turn needs its record first, so that its session is not touched.
        with pytest.raises(ServiceRefusedError, match="OOM"):
            await asyncio.wait_for(fleet.session("s").send("hello", pool=pool), PATIENCE_S)
        # A patient submit waits; those who read beside it do not.
        submitting = asyncio.create_task(patient.submit("hello", pool=pool))
        for _ in range(3):
            assert (await asyncio.wait_for(patient.get(job), PATIENCE_S)).id == job.id
        async with connect(redis_url=own_redis.url) as newcomer:
            assert (await newcomer.get(job)).id == job.id
        shown = await inferfleet("get", job.id, environment={"INFERFLEET_REDIS_URL": own_redis.url})
        assert shown.code == 0
        assert not submitting.done()
        await operator.config_set("maxmemory", 0)
        assert await asyncio.wait_for(submitting, PATIENCE_S)


async def test_a_right_that_is_taken_away_reaches_whoever_waits_or_streams(
    own_redis: RedisProcess, operator: aioredis.Redis, connect: Connect, start_worker: StartWorker, pool: str
) -> None:
    await set_user(operator, "~inferfleet:*", "+@all")
    async with connect(redis_url=as_user(own_redis.url, "someone"), patience_s=PATIENCE_S) as fleet:
        await fleet.declare_pool(pool)
        job = await fleet.submit("hello", pool=pool)
        lines = fleet.stream(job)
        assert (await anext(lines)).entry.kind == "queued"
        waiting: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(fleet.wait(job)),
            asyncio.ensure_future(anext(lines)),
        ]
        await fleet.get(job)
        await operator.execute_command("ACL", "SETUSER", "someone", "-xread")
        # A blocked read goes on until something wakes it.
        await wake(fleet.pipeline, fleet._settings.client_id)
        for it in waiting:
            with pytest.raises(ServiceRefusedError, match=r"XREAD .*'xread'"):
                await asyncio.wait_for(it, PATIENCE_S)
        # Once it is given back, so is the service.
        await operator.execute_command("ACL", "SETUSER", "someone", "+xread")
        await start_worker(redis_url=own_redis.url)

        async def is_answered() -> bool:
            with suppress(ServiceRefusedError):
                return (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
            return False

        await eventually(is_answered)


async def health(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def test_a_worker_that_loses_its_rights_says_so_and_goes_on_when_it_has_them_again(
    own_redis: RedisProcess,
    operator: aioredis.Redis,
    connect: Connect,
    start_worker_process: StartWorkerProcess,
    pool: str,
) -> None:
    await set_user(operator, "~inferfleet:*", "+@all")
    async with connect(redis_url=own_redis.url) as fleet:
        worker = await start_worker_process(redis_url=as_user(own_redis.url, "someone"))
        port: int = (await worker.logged("serving health"))["port"]
        await worker.logged("ready")
        assert (await health(port, "/health/ready"))[0] == 200
        await operator.execute_command("ACL", "SETUSER", "someone", "-evalsha")
        job = await fleet.submit("hello", pool=pool)
        line = await worker.logged("Redis refuses EVALSHA")
        assert "NOPERM" in line["message"]

        async def is_unready() -> bool:
            return (await health(port, "/health/ready"))[0] == 503

        await eventually(is_unready)
        assert (await health(port, "/health/live"))[0] == 200
        assert re.search(
            r"^inferfleet_worker_ready\S* 0\.0$", (await health(port, "/metrics"))[1], re.MULTILINE
        )
        # The job waits here, and does not go round.
        assert "before a job was settled" not in worker.log
        await operator.execute_command("ACL", "SETUSER", "someone", "+evalsha")
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
        assert (result.text, result.attempts) == (answer_to(job), 1)
        assert (await health(port, "/health/ready"))[0] == 200
        assert await worker.stop() == 0


async def test_a_password_that_is_changed_under_a_worker_is_told_and_waited_out(
    own_redis: RedisProcess,
    operator: aioredis.Redis,
    connect: Connect,
    start_worker_process: StartWorkerProcess,
    pool: str,
) -> None:
    await set_user(operator, "~inferfleet:*", "+@all")
    async with connect(redis_url=own_redis.url) as fleet:
        worker = await start_worker_process(redis_url=as_user(own_redis.url, "someone"))
        await worker.logged("ready")
        await operator.execute_command("ACL", "SETUSER", "someone", "resetpass", ">other")
        await operator.execute_command("CLIENT", "KILL", "USER", "someone")
        job = await fleet.submit("hello", pool=pool)
        await worker.logged("Redis refuses (WRONGPASS")
        assert "secret" not in worker.log
        await operator.execute_command("ACL", "SETUSER", "someone", ">secret")
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).text == answer_to(job)
        assert await worker.stop() == 0


async def test_a_replica_is_told_apart_from_a_redis_that_is_away(
    start_redis: StartRedis, connect: Connect, pool: str, start_worker_process: StartWorkerProcess
) -> None:
    replica = start_redis()
    async with aioredis.Redis.from_url(replica.url) as client:
        await client.replicaof("127.0.0.1", free_port())
    async with connect(redis_url=replica.url) as fleet:
        await fleet.declare_pool(pool)
        with pytest.raises(ServiceRefusedError, match=r"READONLY .*master"):
            await fleet.submit("hello", pool=pool)
    worker = await start_worker_process(redis_url=replica.url, connect_timeout_s="0.1")
    assert await worker.ended() == 3
    assert "READONLY" in worker.log


@pytest.mark.parametrize(
    ("kind", "path", "advice"),
    [("sentinel", "main/0", "no Sentinel.*26379"), ("cluster", "", "single server")],
)
async def test_a_single_redis_whose_url_says_otherwise_is_told_as_such(
    own_redis: RedisProcess, connect: Connect, kind: str, path: str, advice: str
) -> None:
    url = f"redis+{kind}://{urlsplit(own_redis.url).netloc}/{path}"
    with pytest.raises(ServiceRefusedError, match=f"{advice}.*redis://host:6379/0"):
        async with connect(redis_url=url):
            pass


async def test_too_many_clients_are_told_as_such(
    own_redis: RedisProcess, operator: aioredis.Redis, connect: Connect
) -> None:
    await operator.ping()
    await operator.config_set("maxclients", 1)
    with pytest.raises(ServiceRefusedError, match="max number of clients reached"):
        async with connect(redis_url=own_redis.url):
            pass
