"""A Redis 8 in a container, for tests of what older versions do not have."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from tests.patience import PATIENCE_S

from inferfleet.local.services import ServicesChoice
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.launcher import source_of
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_ping import redis_version


@contextmanager
def running_redis_8(config: pytest.Config) -> Iterator[str]:
    """Run it and yield its URL; skip the test where containers cannot run, unless they are required."""
    port = free_port()
    with _running(config, {6379: port}):
        _wait_until(lambda: redis_version("127.0.0.1", port))
        yield f"redis://127.0.0.1:{port}/0"


@dataclass(frozen=True)
class Redis8Cluster:
    """Three masters in one container, each on the same port there and here."""

    container: Any
    ports: Sequence[int]

    @property
    def url(self) -> str:
        """The URL with all nodes."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{port}' for port in self.ports)}"

    def owner(self, slot: int) -> int:
        """Return the port of the master that has a slot."""
        ranges = json.loads(self.cli("-p", str(self.ports[0]), "--json", "cluster", "slots"))
        return next(port for first, last, (_, port, *_), *_ in ranges if first <= slot <= last)

    def move_slot(self, slot: int, *, source: int, target: int) -> None:
        """Move a slot with its keys, one after the other, as an operator would."""
        here, there = ("-p", str(source)), ("-p", str(target))
        ids = {port: self.cli("-p", str(port), "cluster", "myid").strip() for port in (source, target)}
        self.cli(*there, "cluster", "setslot", str(slot), "importing", ids[source])
        self.cli(*here, "cluster", "setslot", str(slot), "migrating", ids[target])
        while key := self.cli(*here, "cluster", "getkeysinslot", str(slot), "1").strip():
            self.cli(*here, "migrate", "127.0.0.1", str(target), key, "0", "5000")
        for port in (target, *(port for port in self.ports if port != target)):
            self.cli("-p", str(port), "cluster", "setslot", str(slot), "node", ids[target])

    def cli(self, *arguments: str) -> str:
        """Run ``redis-cli`` in the container."""
        code, said = self.container.exec_run(["redis-cli", *arguments])
        assert code == 0, said
        return str(said.decode())


@contextmanager
def running_redis_8_cluster(config: pytest.Config) -> Iterator[Redis8Cluster]:
    """Run it; skip the test where containers cannot run, unless they are required."""
    ports = [free_port() for _ in range(3)]
    servers = [
        f"redis-server --port {port} --cluster-enabled yes --cluster-port {free_port()} "
        f"--cluster-config-file nodes-{port}.conf --save '' --protected-mode no & "
        for port in ports
    ]
    with _running(config, dict(zip(ports, ports, strict=True)), "sh", "-c", f"{''.join(servers)}wait") as it:
        cluster = Redis8Cluster(it, ports)
        for port in ports:
            _wait_until(partial(redis_version, "127.0.0.1", port))
        cluster.cli("--cluster", "create", *(f"127.0.0.1:{port}" for port in ports), "--cluster-yes")
        _wait_until(partial(_require_whole, cluster))
        yield cluster


def _require_whole(cluster: Redis8Cluster) -> None:
    for port in cluster.ports:
        if "cluster_state:ok" not in (said := cluster.cli("-p", str(port), "cluster", "info")):
            raise OSError(said)


@contextmanager
def _running(config: pytest.Config, ports: Mapping[int, int], *command: str) -> Iterator[Any]:
    """Run a container, with ports of this machine for its own."""
    if (reason := source_of(ServicesChoice.DOCKER).unavailable_reason()) is not None:
        required = ServicesChoice.DOCKER in config.getoption("--require-services")
        (pytest.fail if required else pytest.skip)(f"Redis 8 cannot run here: {reason}")
    import docker

    from inferfleet.local.services.containers import REDIS_IMAGE

    name = f"inferfleet-redis-8-{uuid4().hex[:8]}"
    client = docker.from_env()
    with Reaper() as reaper:
        reaper.add("container", name)
        container = client.containers.run(
            REDIS_IMAGE,
            [*command],
            name=name,
            detach=True,
            ports={f"{inner}/tcp": ("127.0.0.1", outer) for inner, outer in ports.items()},
        )
        try:
            yield container
        finally:
            container.remove(force=True, v=True)
            reaper.strike("container", name)
            client.close()


def _wait_until(serves: Callable[[], object]) -> None:
    """Wait until it raises no ``OSError``."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            serves()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return
