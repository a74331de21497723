"""The matrix: RabbitMQ servers and queue types that the tests of broker behaviour run on.

``pytest --matrix all`` runs the tests marked ``matrix``, and only those, once for each cell. One server a
version serves the whole run. ``scripts/test-matrix`` runs several cells at once.
``docs/reference/support.md`` shows the same table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from uuid import uuid4

from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.local.services.amqp_handshake import amqp_version
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.launcher import source_of
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_cluster import RedisCluster
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.local.services.redis_sentinels import RedisSentinels
from inferfleet.schemas.settings import QueueType

NATIVE = "native"
SERVERS = {"3.10": NATIVE, "4.0": "rabbitmq:4-management", "4.3": "rabbitmq:4.3-management"}
"""Each version and where it comes from: the binaries of this machine, or an image."""

USER = PASSWORD = "matrix"
START_TIMEOUT_S = 120.0


class StoreKind(StrEnum):
    """How Redis is run."""

    SINGLE = "single"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


@dataclass(frozen=True, order=True)
class Cell:
    """One version of RabbitMQ with one type of queues, and a kind of Redis.

    The tests marked ``matrix`` run on each RabbitMQ, and those marked ``store`` on each Redis but the usual.
    """

    version: str
    queue_type: QueueType
    store: StoreKind = StoreKind.SINGLE

    def __str__(self) -> str:
        store = "" if self.store is StoreKind.SINGLE else f"-{self.store}"
        return f"{self.version}-{self.queue_type}{store}"

    @property
    def marker(self) -> str:
        """The marker of the tests that run on it."""
        return "matrix" if self.store is StoreKind.SINGLE else "store"

    @property
    def priorities(self) -> int:
        """How many priorities a pool's queue tells apart."""
        if self.queue_type is QueueType.CLASSIC:
            return 10
        return {"3.10": 1, "4.0": 2}.get(self.version, 10)

    @property
    def returns(self) -> str:
        """What becomes of a job that a worker returns."""
        behind = self.queue_type is QueueType.QUORUM and self.version in {"3.10", "4.0"}
        return "goes to the end" if behind else "goes back to its place"


BASELINE = Cell("3.10", QueueType.CLASSIC)
"""What all tests run on that are given nothing else, where the native servers are."""

BROKERS = tuple(Cell(version, queue_type) for version in SERVERS for queue_type in QueueType)

CELLS = (
    *BROKERS,
    *(Cell(BASELINE.version, BASELINE.queue_type, store) for store in StoreKind if store != StoreKind.SINGLE),
)


def unavailable_reason(version: str) -> str | None:
    """Say why this version cannot run here; ``None`` if it can."""
    image = SERVERS[version]
    if image == NATIVE:
        return source_of(ServicesChoice.NATIVE).unavailable_reason()
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=5)
    except DockerException as error:
        return f"no Docker engine answers ({error})"
    try:
        client.images.get(image)
    except ImageNotFound:
        return f"the image {image} is not here"
    except DockerException as error:
        return str(error)
    finally:
        client.close()
    return source_of(ServicesChoice.NATIVE).unavailable_reason()  # for Redis


class ContainerBroker:
    """RabbitMQ in a container, always on the same port. Can be killed and started as the native one can."""

    def __init__(self, container: Any, port: int) -> None:
        self._container = container
        self.port = port
        self.version = ""

    @property
    def url(self) -> str:
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/"

    def kill(self) -> None:
        self._container.kill()

    def start(self) -> None:
        self._container.reload()
        assert self._container.status != "running"
        self._container.start()
        self.wait_until_ready()

    def control(self, *arguments: str) -> str:
        code, output = self._container.exec_run(["rabbitmqctl", "--silent", *arguments])
        assert code == 0, output.decode()
        return output.decode()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.version = amqp_version("127.0.0.1", self.port, user=USER, password=PASSWORD)
            except OSError:
                assert time.monotonic() < deadline, self._container.logs(tail=25).decode()
                time.sleep(0.1)
            else:
                return


@contextmanager
def _container(image: str, reaper: Reaper) -> Iterator[ContainerBroker]:
    import docker

    port = free_port()
    name = f"inferfleet-matrix-{uuid4().hex[:8]}"
    client = docker.from_env()
    reaper.add("container", name)
    try:
        container = client.containers.run(
            image,
            name=name,
            detach=True,
            ports={"5672/tcp": ("127.0.0.1", port)},
            environment={"RABBITMQ_DEFAULT_USER": USER, "RABBITMQ_DEFAULT_PASS": PASSWORD},
        )
        try:
            broker = ContainerBroker(container, port)
            broker.wait_until_ready()
            yield broker
        finally:
            container.remove(force=True, v=True)
            reaper.strike("container", name)
    finally:
        client.close()


class Servers:
    """The one server that runs at a time. Another version's start ends it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._running: tuple[str, StoreKind] | None = None
        self._services: Services | None = None

    def services(self, cell: Cell) -> Services:
        wanted = cell.version, cell.store
        if self._services is None or self._running != wanted:
            self.close()
            self._services = self._start(SERVERS[cell.version], cell.store)
            self._running = wanted
        return self._services

    def close(self) -> None:
        self._services = None
        self._stack.close()

    def _start(self, image: str, kind: StoreKind) -> Services:
        if image == NATIVE:
            services = self._stack.enter_context(running_services(ServicesChoice.NATIVE))
            return services if kind is StoreKind.SINGLE else self._with(kind, services)
        reaper = self._stack.enter_context(Reaper())
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="inferfleet-")))
        server = redis_binary()
        assert server is not None
        store = RedisProcess(server=server, folder=folder, reaper=reaper)
        self._stack.callback(store.close)
        store.start()
        broker = self._stack.enter_context(_container(image, reaper))
        return Services(
            kind=ServicesChoice.NATIVE,
            amqp_url=broker.url,
            redis_url=store.url,
            description=f"RabbitMQ {broker.version} in a container, native Redis {store.version}",
            # What a test does with it is what a container can do, too.
            broker=cast("RabbitMQProcess", broker),
            store=store,
        )

    def _with(self, kind: StoreKind, services: Services) -> Services:
        """Put several servers in the place of the one Redis."""
        reaper = self._stack.enter_context(Reaper())
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="inferfleet-")))
        server = redis_binary()
        assert server is not None
        several = RedisCluster if kind is StoreKind.CLUSTER else RedisSentinels
        store = several(server=server, folder=folder, reaper=reaper)
        self._stack.callback(store.close)
        store.start()
        return replace(
            services,
            redis_url=store.url,
            description=f"{services.description}, with a {kind} of Redis {store.version}",
            # What a test does with it is what these can do, too.
            store=cast("RedisProcess", store),
        )
