"""Native servers can be killed and started again, and nothing of them stays behind."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest
import redis
from tests.patience import PATIENCE_S

from inferfleet.local.services import Services
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.schemas.errors import ServiceUnreachableError

LAUNCHER = """
import signal
import time
from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess
RabbitMQProcess.wait_until_ready = lambda broker: None
# Ignored where a shell has started the tests in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
with running_services(ServicesChoice.NATIVE) as services:
    print(services.broker.pid, services.broker.port_mapper_pid, services.store.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def broker(managed: Services) -> RabbitMQProcess:
    assert managed.broker is not None
    return managed.broker


@pytest.fixture
def store(managed: Services) -> RedisProcess:
    assert managed.store is not None
    return managed.store


async def test_a_killed_broker_comes_back_at_the_same_url_with_what_was_on_disk(
    broker: RabbitMQProcess,
) -> None:
    url, pid = broker.url, broker.pid
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True)
        # RabbitMQ 3.10 answers a declaration before Mnesia's "committed" is on disk; killed within those
        # milliseconds it comes back without the queue, messages and all. The next declaration writes it.
        await channel.declare_queue("next", durable=True)
        message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, "kept", mandatory=True)
    broker.kill()
    assert not broker.running
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", broker.port)):
        pass
    broker.start()
    assert (broker.url, broker.pid == pid) == (url, False)
    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).get_queue("kept")
        kept = await queue.get()
        assert kept is not None
        assert kept.body == b"kept"


async def test_a_broker_started_without_its_data_is_empty(broker: RabbitMQProcess) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        await (await connection.channel()).declare_queue("lost", durable=True)
    broker.stop()
    broker.start(keep_data=False)
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await channel.declare_queue("lost", passive=True)


def test_the_management_api_answers(managed: Services) -> None:
    assert managed.management_url is not None
    url = urlsplit(managed.management_url)
    credentials = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
    request = urllib.request.Request(
        f"http://{url.hostname}:{url.port}/api/overview", headers={"Authorization": f"Basic {credentials}"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        assert answer.status == 200


def test_a_killed_store_comes_back_with_everything_it_had_answered(store: RedisProcess) -> None:
    with redis.Redis.from_url(store.url) as client:
        for number in range(100):
            client.set(f"key-{number}", number)
    store.kill()
    store.start()
    with redis.Redis.from_url(store.url) as client:
        assert client.dbsize() == 100


def test_a_store_started_without_its_data_is_empty(store: RedisProcess) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.set("key", 1)
    store.stop()
    store.start(keep_data=False)
    with redis.Redis.from_url(store.url) as client:
        assert client.dbsize() == 0


@pytest.mark.usefixtures("managed")
def test_a_server_whose_port_is_taken_says_so(tmp_path: Path) -> None:
    with Reaper() as reaper:
        server = redis_binary()
        assert server is not None
        second = RedisProcess(server=server, folder=tmp_path / "redis", reaper=reaper)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", second.port))
            with pytest.raises(ServiceUnreachableError, match="Address already in use"):
                second.start()
        second.close()


@pytest.mark.usefixtures("managed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_behind_when_the_launcher_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    """RabbitMQ is still starting. Another set of native services, which has nothing in common, goes on."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as launcher:
        assert launcher.stdout is not None
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        assert len(pids) == 3
        assert list(tmp_path.iterdir())
        launcher.send_signal(number)
    deadline = time.monotonic() + PATIENCE_S
    while any(_alive(pid) for pid in pids) or list(tmp_path.iterdir()):
        assert time.monotonic() < deadline, (pids, list(tmp_path.iterdir()))
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """Whether it runs. A zombie that nobody has collected yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and ") Z " in status.read_text())
