"""Services that are not there, or refuse us: a clear error for clients, commands and workers alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import PATIENCE_S, Connect, RunCommand, StartWorkerProcess

from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.producer import Fleet
from inferfleet.schemas import Job
from inferfleet.schemas.errors import (
    ConfigurationError,
    JobNotFoundError,
    ServiceRefusedError,
    ServiceUnreachableError,
)

SECRET = "hunter2"


def with_password(url: str, user: str = "guest") -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{SECRET}@{parts.hostname}:{parts.port}").geturl()


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
async def locked_redis_url(
    services: Services, store: aioredis.Redis, pool: str, real_redis: None
) -> AsyncIterator[str]:
    """The URL of a Redis user, with a wrong password."""
    await store.acl_setuser(pool, enabled=True, passwords=["+right"], commands=["+@all"], keys=["*"])
    yield with_password(services.redis_url, pool)
    await store.acl_deluser(pool)


async def test_a_client_is_told_at_once_that_redis_is_away(connect: Connect, nobody: str) -> None:
    with pytest.raises(ServiceUnreachableError, match=rf"Redis at redis://{nobody}/0 .*INFERFLEET_REDIS_URL"):
        async with connect(redis_url=f"redis://{nobody}/0"):
            pass


async def test_a_client_is_told_that_redis_refuses_its_password(
    connect: Connect, locked_redis_url: str
) -> None:
    with pytest.raises(ServiceRefusedError, match="refuses the credentials") as caught:
        async with connect(redis_url=locked_redis_url):
            pass
    assert SECRET not in str(caught.value)


async def test_a_submit_is_told_that_rabbitmq_is_away_and_leaves_no_record(
    connect: Connect, nobody: str, store: aioredis.Redis
) -> None:
    job = Job(body={"messages": [{"role": "user", "content": "hello"}]})
    async with connect(amqp_url=f"amqp://guest:{SECRET}@{nobody}/") as fleet:
        with pytest.raises(ServiceUnreachableError, match=r"RabbitMQ at .*INFERFLEET_AMQP_URL") as caught:
            await fleet.submit(job)
        assert SECRET not in str(caught.value)
        with pytest.raises(JobNotFoundError):
            await fleet.get(job)


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the addresses of RabbitMQ be tried in the order of the URL."""
    monkeypatch.setattr(random, "shuffle", lambda places: places.sort(key=lambda place: place[0]))


@pytest.mark.usefixtures("in_order")
async def test_the_hosts_of_a_url_are_tried_in_turn_until_one_answers(
    connect: Connect, services: Services, nobody: str, pool: str
) -> None:
    silent = await asyncio.start_server(lambda reader, writer: silence.append(writer), "127.0.0.1", 0)
    silence: list[asyncio.StreamWriter] = []
    hosts = f"{nobody},127.0.0.1:{silent.sockets[0].getsockname()[1]},no-such-host.invalid"
    url = urlsplit(services.amqp_url)
    login, _, working = url.netloc.rpartition("@")
    several = url._replace(netloc=f"{login}@{hosts},{working.replace('127.0.0.1', 'localhost')}").geturl()
    async with connect(amqp_url=several, connect_timeout_s=8) as fleet:
        await fleet.declare_pool(pool)
        await fleet.submit("hello", pool=pool)
    assert silence
    for writer in silence:
        writer.close()
    silent.close()


@pytest.mark.usefixtures("in_order")
async def test_all_addresses_of_a_name_are_tried_in_turn(
    connect: Connect, services: Services, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    async def addresses(_: str, port: int, **__: object) -> list[object]:
        return [(0, 0, 0, "", (f"127.0.0.{last}", port)) for last in (9, 1)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    url = services.amqp_url.replace("127.0.0.1", "rabbitmq.internal")
    async with connect(amqp_url=url) as fleet:
        await fleet.declare_pool(pool)
        await fleet.submit("hello", pool=pool)


@pytest.mark.usefixtures("in_order")
async def test_a_submit_is_told_what_each_host_says(connect: Connect, nobody: str) -> None:
    nobody_else = nobody.replace("127.0.0.1", "127.0.0.2")
    async with connect(amqp_url=f"amqp://guest:{SECRET}@{nobody},{nobody_else}/") as fleet:
        with pytest.raises(
            ServiceUnreachableError, match=rf"{nobody}: .*failed.*; {nobody_else}: .*failed"
        ) as caught:
            await fleet.submit("hello")
        assert SECRET not in str(caught.value)


async def test_a_submit_is_told_that_rabbitmq_refuses_its_password_before_that_another_host_is_away(
    connect: Connect, services: Services, nobody: str
) -> None:
    async with connect(amqp_url=with_password(services.amqp_url).replace("@", f"@{nobody},")) as fleet:
        with pytest.raises(ServiceUnreachableError, match="refuses the credentials"):
            await fleet.submit("hello")


async def test_a_submit_is_told_that_rabbitmq_refuses_its_password(
    connect: Connect, services: Services
) -> None:
    async with connect(amqp_url=with_password(services.amqp_url)) as fleet:
        with pytest.raises(ServiceUnreachableError, match="refuses the credentials") as caught:
            await fleet.submit("hello")
        assert SECRET not in str(caught.value)


async def test_a_virtual_host_that_does_not_exist_is_a_clear_error(
    connect: Connect, services: Services
) -> None:
    async with connect(amqp_url=f"{services.amqp_url}nowhere") as fleet:
        with pytest.raises(ServiceUnreachableError, match="virtual host"):
            await asyncio.wait_for(fleet.submit("hello"), PATIENCE_S)


async def test_an_address_of_a_list_of_hosts_does_not_show_the_password_in_its_path(
    connect: Connect, services: Services
) -> None:
    async with connect(amqp_url=f"{services.amqp_url}v,guest:{SECRET}@two:5672/") as fleet:
        with pytest.raises(ServiceUnreachableError, match=r"vhost \*\*\* not found") as caught:
            await asyncio.wait_for(fleet.submit("hello"), PATIENCE_S)
        assert SECRET not in str(caught.value)


async def test_a_patient_submit_waits_for_a_broker_that_comes_back(
    connect: Connect, services: Services, pool: str, fleet: Fleet
) -> None:
    """The broker is behind a port that opens late."""
    port, broker = free_port(), urlsplit(services.amqp_url)
    late = broker._replace(netloc=f"guest:guest@127.0.0.1:{port}").geturl()
    if services.amqp_url.find("guest:guest@") < 0:
        pytest.skip("these services have other credentials")
    async with connect(amqp_url=late, patience_s=PATIENCE_S) as patient:
        submitting = asyncio.create_task(patient.submit("hello", pool=pool))
        done, _ = await asyncio.wait({submitting}, timeout=0.3)
        assert not done
        connections: set[asyncio.StreamWriter] = set()

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, on = await asyncio.open_connection(broker.hostname, broker.port)
            connections.update((writer, on))
            await asyncio.gather(_copy(reader, on), _copy(back, writer))

        server = await asyncio.start_server(forward, "127.0.0.1", port)
        job = await asyncio.wait_for(submitting, PATIENCE_S)
        assert (await fleet.get(job)).pool == pool
    server.close()
    for writer in connections:
        writer.close()
        await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def test_without_settings_a_client_reads_the_environment(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERFLEET_REDIS_URL", services.redis_url)
    monkeypatch.setenv("INFERFLEET_AMQP_URL", services.amqp_url)
    async with Fleet.connect() as fleet:
        assert isinstance(await fleet.workers(), list)
    monkeypatch.setenv("INFERFLEET_REDIS_URL", "http://elsewhere")
    with pytest.raises(ConfigurationError, match="INFERFLEET_REDIS_URL: the scheme 'http'"):
        async with Fleet.connect():
            pass


# Commands and workers


@pytest.mark.parametrize("command", [("submit", "hello"), ("pool", "declare", "p"), ("dead", "list")])
async def test_a_command_says_in_one_line_that_rabbitmq_is_away(
    inferfleet: RunCommand, nobody: str, command: tuple[str, ...]
) -> None:
    ended = await inferfleet(*command, environment={"INFERFLEET_AMQP_URL": f"amqp://u:{SECRET}@{nobody}/"})
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("inferfleet: RabbitMQ at ")
    assert ended.err.count("\n") == 1
    assert SECRET not in ended.err


@pytest.mark.parametrize("command", [("get", "x"), ("submit", "hello")])
async def test_a_command_says_in_one_line_that_redis_is_away(
    inferfleet: RunCommand, nobody: str, command: tuple[str, ...]
) -> None:
    ended = await inferfleet(*command, environment={"INFERFLEET_REDIS_URL": f"redis://:{SECRET}@{nobody}/0"})
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("inferfleet: Redis at ")
    assert ended.err.count("\n") == 1
    assert SECRET not in ended.err


@pytest.mark.parametrize("service", ["amqp", "redis"])
async def test_a_worker_that_finds_no_service_ends_with_code_3(
    start_worker_process: StartWorkerProcess, nobody: str, service: str
) -> None:
    worker = await start_worker_process(**{f"{service}_url": f"{service}://u:{SECRET}@{nobody}/"})
    assert await worker.ended() == 3
    assert worker.log.splitlines()[-1].startswith("inferfleet: R")
    assert "does not answer" in worker.log
    assert "Traceback" not in worker.log
    assert SECRET not in worker.log


async def test_a_worker_with_a_wrong_password_for_rabbitmq_ends_with_code_3(
    start_worker_process: StartWorkerProcess, services: Services
) -> None:
    worker = await start_worker_process(amqp_url=with_password(services.amqp_url))
    assert await worker.ended() == 3
    assert "refuses the credentials" in worker.log
    assert "Traceback" not in worker.log
    assert SECRET not in worker.log


async def test_a_worker_with_a_wrong_password_for_redis_ends_with_code_3(
    start_worker_process: StartWorkerProcess, locked_redis_url: str
) -> None:
    worker = await start_worker_process(redis_url=locked_redis_url)
    assert await worker.ended() == 3
    assert "refuses the credentials" in worker.log
    assert "Traceback" not in worker.log
    assert SECRET not in worker.log


async def test_two_workers_cannot_have_one_name(
    start_worker_process: StartWorkerProcess, fleet: Fleet, pool: str
) -> None:
    first = await start_worker_process(worker_id=f"{pool}-w")
    await first.logged("ready")
    second = await start_worker_process(worker_id=f"{pool}-w")
    assert await second.ended() == 3
    assert f"another worker named '{pool}-w' is connected" in second.log
    assert "Traceback" not in second.log
    job = await fleet.submit("hello", pool=pool)
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).worker_id == f"{pool}-w"
