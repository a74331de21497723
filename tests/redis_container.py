"""A Redis 8 in a container, for tests of what older versions do not have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    if (reason := source_of(ServicesChoice.DOCKER).unavailable_reason()) is not None:
        required = ServicesChoice.DOCKER in config.getoption("--require-services")
        (pytest.fail if required else pytest.skip)(f"Redis 8 cannot run here: {reason}")
    import docker

    from inferfleet.local.services.containers import REDIS_IMAGE

    port, name = free_port(), f"inferfleet-redis-8-{uuid4().hex[:8]}"
    client = docker.from_env()
    with Reaper() as reaper:
        reaper.add("container", name)
        container = client.containers.run(
            REDIS_IMAGE, name=name, detach=True, ports={"6379/tcp": ("127.0.0.1", port)}
        )
        try:
            _wait_until_ready(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            container.remove(force=True, v=True)
            reaper.strike("container", name)
            client.close()


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            redis_version("127.0.0.1", port)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return
