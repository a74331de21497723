"""RabbitMQ and Redis in Docker containers, through testcontainers.

testcontainers' modules for the two need additional clients (pika), so this module uses its plain container.
It does not use Ryuk, testcontainers' clean-up container: our reaper does the same without another image.
"""

from __future__ import annotations

import gc
import logging
import secrets
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from typing import cast

import docker
from docker.errors import DockerException, ImageNotFound, NotFound
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from inferfleet.local.services.amqp_handshake import amqp_version
from inferfleet.local.services.choice import Services, ServicesChoice, ServicesOptions
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_ping import redis_version
from inferfleet.schemas.errors import ServiceUnreachableError

logger = logging.getLogger(__name__)

RABBITMQ_IMAGE = "rabbitmq:4-management"
REDIS_IMAGE = "redis:8"
AMQP_PORT, MANAGEMENT_PORT, REDIS_PORT = 5672, 15672, 6379
USER, PASSWORD = "inferfleet", "inferfleet"  # RabbitMQ lets its own guest in from inside the container only

ENGINE_TIMEOUT_S = 5
PULL_TIMEOUT_S = 180.0
START_TIMEOUT_S = 120.0
POLL_INTERVAL_S = 0.1
LOG_TAIL_LINES = 25


def unavailable_reason() -> str | None:
    """Say why containers cannot run here; ``None`` if they can. Pulls missing images."""
    # docker-py does not close its socket when Docker does not answer. Without this, the warning about it
    # would appear in any code that runs when the garbage is collected.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        reason = _engine_obstacle()
        if reason is not None:
            gc.collect()
    return reason


def _engine_obstacle() -> str | None:
    try:
        client = DockerClient(timeout=ENGINE_TIMEOUT_S).client
    except DockerException as error:
        return f"no Docker engine answers ({error})"
    try:
        for image in (RABBITMQ_IMAGE, REDIS_IMAGE):
            try:
                client.images.get(image)
            except ImageNotFound:
                _pull(client, image)
    except (DockerException, TimeoutError) as error:
        return f"the images are not here and cannot be pulled ({error})"
    finally:
        client.close()
    return None


@contextmanager
def container_services(options: ServicesOptions) -> Generator[Services]:
    """Run both until the context ends. RabbitMQ's management API is always enabled.

    Raises:
        ServiceUnreachableError: Docker refused, or a container did not start; the message has the end of its
            log.

    """
    suffix = secrets.token_hex(4)
    with (
        Reaper() as reaper,
        _container(_rabbitmq(), f"inferfleet-rabbitmq-{suffix}", reaper) as rabbitmq,
        _container(_redis(options), f"inferfleet-redis-{suffix}", reaper) as redis,
    ):
        amqp_host, amqp_port = _address(rabbitmq, AMQP_PORT)
        redis_host, redis_port = _address(redis, REDIS_PORT)
        redis_is = _wait_until_ready(redis, lambda: redis_version(redis_host, redis_port))
        rabbitmq_is = _wait_until_ready(
            rabbitmq, lambda: amqp_version(amqp_host, amqp_port, user=USER, password=PASSWORD)
        )
        management_host, management_port = _address(rabbitmq, MANAGEMENT_PORT)
        yield Services(
            kind=ServicesChoice.DOCKER,
            amqp_url=f"amqp://{USER}:{PASSWORD}@{amqp_host}:{amqp_port}/",
            redis_url=f"redis://{redis_host}:{redis_port}/0",
            description=f"RabbitMQ {rabbitmq_is} and Redis {redis_is} in Docker containers",
            management_url=f"http://{USER}:{PASSWORD}@{management_host}:{management_port}",
        )


def _rabbitmq() -> DockerContainer:
    return (
        DockerContainer(RABBITMQ_IMAGE)
        .with_exposed_ports(AMQP_PORT, MANAGEMENT_PORT)
        .with_envs(RABBITMQ_DEFAULT_USER=USER, RABBITMQ_DEFAULT_PASS=PASSWORD)
    )


def _redis(options: ServicesOptions) -> DockerContainer:
    command = (
        "redis-server --bind 0.0.0.0 --protected-mode no --save '' --appendonly yes "
        f"--appendfsync {options.fsync}"
    )
    return DockerContainer(REDIS_IMAGE).with_command(command).with_exposed_ports(REDIS_PORT)


@contextmanager
def _container(container: DockerContainer, name: str, reaper: Reaper) -> Generator[DockerContainer]:
    # Listed before it exists, so that a kill in between does not leave it behind.
    reaper.add("container", name)
    container.with_name(name)
    try:
        with _without_ryuk():
            container.start()
        yield container
    except DockerException as error:
        raise ServiceUnreachableError(f"Docker cannot run {container.image}: {error}") from error
    finally:
        # It does not matter if somebody else has removed the container.
        with suppress(NotFound):
            container.stop()
        reaper.strike("container", name)


@contextmanager
def _without_ryuk() -> Generator[None]:
    # The switch is global, so it is restored: a program's own containers keep their Ryuk.
    before = testcontainers_config.ryuk_disabled
    testcontainers_config.ryuk_disabled = True
    try:
        yield
    finally:
        testcontainers_config.ryuk_disabled = before


def _address(container: DockerContainer, port: int) -> tuple[str, int]:
    return container.get_container_host_ip(), container.get_exposed_port(port)


def _wait_until_ready(container: DockerContainer, version: Callable[[], str]) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return version()
        except OSError as error:
            reason = error
        container.reload()
        if container.status != "running" or time.monotonic() > deadline:
            log = container.get_wrapped_container().logs(tail=LOG_TAIL_LINES).decode(errors="replace")
            raise ServiceUnreachableError(
                f"{container.image} does not serve ({reason}; the container is {container.status}); "
                f"the end of its log:\n{log}"
            )
        time.sleep(POLL_INTERVAL_S)


def _pull(client: docker.DockerClient, image: str) -> None:
    logger.warning("pulling image %s (timeout %g s)", image, PULL_TIMEOUT_S)
    deadline = time.monotonic() + PULL_TIMEOUT_S
    repository, _, tag = image.partition(":")
    steps = cast("Iterable[dict[str, str]]", client.api.pull(repository, tag=tag, stream=True, decode=True))
    for progress in steps:
        if "error" in progress:
            raise DockerException(progress["error"])
        if time.monotonic() > deadline:
            raise TimeoutError(f"{image} takes longer than {PULL_TIMEOUT_S:g} s; docker pull {image}")
