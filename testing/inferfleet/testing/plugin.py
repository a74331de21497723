"""The pytest plugin: services for the session, a client and workers for a test.

pytest loads this in every project that has inferfleet installed. So it imports nothing but pytest, and no
fixture does anything before a test asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from inferfleet.local.services import Services
    from inferfleet.producer import Fleet, SyncFleet
    from inferfleet.testing.workers import SyncWorkers, Workers

pytest.register_assert_rewrite("inferfleet.testing.engine_suite")

KINDS = ("auto", "docker", "native", "embedded", "urls")

AMQP_URL = "INFERFLEET_AMQP_URL"
REDIS_URL = "INFERFLEET_REDIS_URL"
ENVIRONMENT_VARIABLE = "INFERFLEET_TEST_SERVICES"

_CHOICE_HELP = (
    "where RabbitMQ and Redis for tests come from: docker, native (servers of this machine), embedded (in "
    "this process), urls (those of INFERFLEET_AMQP_URL and INFERFLEET_REDIS_URL), or auto: docker, native or "
    "embedded, the first that works here"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a project choose its services."""
    group = parser.getgroup("inferfleet")
    group.addoption("--inferfleet-services", choices=KINDS, default=None, help=_CHOICE_HELP)
    parser.addini("inferfleet_services", help=f"{_CHOICE_HELP} ({ENVIRONMENT_VARIABLE})", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """Offer the client to the plugins for asynchronous tests that are there."""
    for plugin in ("asyncio", "anyio"):
        if config.pluginmanager.has_plugin(plugin):
            config.pluginmanager.import_plugin(f"inferfleet.testing.{plugin}_fixtures")


def _chosen(config: pytest.Config) -> str:
    choice = (
        config.getoption("--inferfleet-services")
        or os.environ.get(ENVIRONMENT_VARIABLE)
        or config.getini("inferfleet_services")
    )
    if choice not in KINDS:
        raise pytest.UsageError(f"inferfleet_services is {choice!r} and should be one of {', '.join(KINDS)}")
    return choice


@pytest.fixture(scope="session")
def inferfleet_services(pytestconfig: pytest.Config) -> Generator[Services]:
    """RabbitMQ and Redis, for as long as the session lasts.

    Clients that read their settings from the environment find them: INFERFLEET_AMQP_URL and
    INFERFLEET_REDIS_URL are set.
    """
    from inferfleet.local.services import ServicesChoice, running_services

    choice = ServicesChoice(_chosen(pytestconfig))
    # Tests should not run on the services that somebody works with, unless that was said.
    given: Mapping[str, str] = os.environ if choice is ServicesChoice.URLS else {}
    running = running_services(choice, amqp_url=given.get(AMQP_URL), redis_url=given.get(REDIS_URL))
    with running as services, pytest.MonkeyPatch.context() as environment:
        environment.setenv(AMQP_URL, services.amqp_url)
        environment.setenv(REDIS_URL, services.redis_url)
        yield services


@pytest.fixture
def sync_workers(
    inferfleet_services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Generator[SyncWorkers]:
    """Starts workers, and says what they answer, for tests that block.

    Behind each test that uses a client or workers the services are empty again, unless their URLs were given.
    """
    from inferfleet.testing.workers import open_workers

    with open_workers(inferfleet_services, tmp_path_factory.mktemp("inferfleet-script")) as workers:
        yield workers


@pytest.fixture
def workers(sync_workers: SyncWorkers) -> Workers:
    """Starts workers, and says what they answer, for asynchronous tests."""
    from inferfleet.testing.workers import Workers

    return Workers(sync_workers)


@pytest.fixture
def sync_fleet(sync_workers: SyncWorkers) -> Generator[SyncFleet]:
    """A connected client, for tests that block."""
    from inferfleet.producer import SyncFleet

    with SyncFleet.connect() as fleet:
        yield fleet


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """A connected client, for asynchronous tests with pytest-asyncio or anyio."""
    plugin = "anyio" if "anyio_backend" in request.fixturenames else "asyncio"
    if not request.config.pluginmanager.has_plugin(plugin):
        raise pytest.UsageError(
            "the fixture `fleet` needs pytest-asyncio or anyio; `sync_fleet` needs neither"
        )
    connected: Fleet = request.getfixturevalue(f"inferfleet_{plugin}_fleet")
    return connected
