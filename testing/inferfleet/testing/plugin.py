"""The pytest plugin: services for a test session, clients and workers for a test.

pytest loads this plugin in every project that has inferfleet installed. So it imports only pytest, and a
fixture does nothing before a test requests it.
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
    "where RabbitMQ and Redis for tests come from: docker, native (this machine's servers), embedded (in "
    "this process), urls (INFERFLEET_AMQP_URL and INFERFLEET_REDIS_URL), or auto: the first of docker, "
    "native and embedded that works here"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose the services."""
    group = parser.getgroup("inferfleet")
    group.addoption("--inferfleet-services", choices=KINDS, default=None, help=_CHOICE_HELP)
    parser.addini("inferfleet_services", help=f"{_CHOICE_HELP} ({ENVIRONMENT_VARIABLE})", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """Register the client's fixture for each installed plugin for asynchronous tests."""
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
    """Run RabbitMQ and Redis for the whole test session.

    Sets INFERFLEET_AMQP_URL and INFERFLEET_REDIS_URL, so that clients with settings from the environment find
    the services.
    """
    from inferfleet.local.services import ServicesChoice, running_services

    choice = ServicesChoice(_chosen(pytestconfig))
    # Use services that others may work with only if they were chosen explicitly.
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
    """Start workers, and script their answers, in blocking tests.

    After each test that uses a client or workers, the plugin empties the services, unless they were given by
    their URLs.
    """
    from inferfleet.testing.workers import open_workers

    with open_workers(inferfleet_services, tmp_path_factory.mktemp("inferfleet-script")) as workers:
        yield workers


@pytest.fixture
def workers(sync_workers: SyncWorkers) -> Workers:
    """Start workers, and script their answers, in asynchronous tests."""
    from inferfleet.testing.workers import Workers

    return Workers(sync_workers)


@pytest.fixture
def sync_fleet(sync_workers: SyncWorkers) -> Generator[SyncFleet]:
    """A connected client for blocking tests."""
    from inferfleet.producer import SyncFleet

    with SyncFleet.connect() as fleet:
        yield fleet


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """A connected client for asynchronous tests with pytest-asyncio or anyio."""
    plugin = "anyio" if "anyio_backend" in request.fixturenames else "asyncio"
    if not request.config.pluginmanager.has_plugin(plugin):
        raise pytest.UsageError(
            "the fixture `fleet` needs pytest-asyncio or anyio; `sync_fleet` needs neither"
        )
    connected: Fleet = request.getfixturevalue(f"inferfleet_{plugin}_fleet")
    return connected
