"""Services for the tests: which kind a run uses, and one running set of it for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.local.services.launcher import source_of

PREFERRED = (ServicesChoice.NATIVE, ServicesChoice.DOCKER, ServicesChoice.EMBEDDED)
"""Native starts in 4 s and can be killed by a test; Docker takes longer; embedded works everywhere."""

ANNOUNCEMENT = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--services",
        type=ServicesChoice,
        default=ServicesChoice.AUTO,
        help="where RabbitMQ and Redis come from: auto (INFERFLEET_…_URL if set, else the first of native, "
        "docker, embedded that works here), urls, native, docker, embedded",
    )
    parser.addoption(
        "--require-services",
        type=lambda names: frozenset(ServicesChoice(name) for name in names.split(",")),
        default=frozenset(),
        help="kinds, separated by commas, that the contract suite must not skip",
    )


@pytest.fixture(scope="session")
def services(pytestconfig: pytest.Config) -> Iterator[Services]:
    """Running services of the kind that ``--services`` names."""
    amqp_url = os.environ.get("INFERFLEET_AMQP_URL")
    redis_url = os.environ.get("INFERFLEET_REDIS_URL")
    choice: ServicesChoice = pytestconfig.getoption("--services")
    if choice is ServicesChoice.AUTO and amqp_url is None and redis_url is None:
        choice = next(kind for kind in PREFERRED if source_of(kind).obstacle() is None)
    with running_services(choice, amqp_url=amqp_url, redis_url=redis_url) as running:
        print(running.announcement)  # noqa: T201 - pytest shows it with -s and when a test fails
        pytestconfig.stash[ANNOUNCEMENT] = running.announcement
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say at the end which services the tests ran on."""
    announcement = config.stash.get(ANNOUNCEMENT, None)
    if announcement is not None:
        terminalreporter.write_line(announcement)
