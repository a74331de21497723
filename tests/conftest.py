"""Services for the tests: which kind a run uses, and one running set of it for the whole session."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest
from tests.matrix import BASELINE, CELLS, Cell, Servers, unavailable_reason
from tests.mutations import MUTATIONS, Without

from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.local.services.choice import Fsync
from inferfleet.local.services.launcher import source_of

PREFERRED = (ServicesChoice.NATIVE, ServicesChoice.DOCKER, ServicesChoice.EMBEDDED)
"""Native starts in 4 s and can be killed by a test; Docker takes longer; embedded works everywhere."""

LONGEST = {"simulation", "test_worker_vllm.py"}
"""The folders and files of the tests that take longest."""

ANNOUNCEMENT = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--services",
        # Words, and not what they stand for, since they are handed on to other processes.
        type=lambda name: ServicesChoice(name).value,
        default=ServicesChoice.AUTO.value,
        help="where RabbitMQ and Redis come from: auto (INFERFLEET_…_URL if set, else the first of native, "
        "docker, embedded that works here), urls, native, docker, embedded",
    )
    parser.addoption(
        "--require-services",
        type=lambda names: [ServicesChoice(name).value for name in names.split(",")],
        default=[],
        help="kinds, separated by commas, that the contract suite must not skip",
    )
    parser.addoption(
        "--matrix",
        default="",
        help="run the tests marked `matrix` alone, on these RabbitMQs and types of queues: all, or some of "
        f"{', '.join(map(str, CELLS))}, separated by commas",
    )
    parser.addoption(
        "--openapi-examples",
        type=int,
        default=3,
        help="how many requests to each route are made from the gateway's OpenAPI document",
    )
    parser.addoption(
        "--agent-runs",
        type=int,
        default=8,
        help="how many runs of agents with children and approvals go on while processes are killed",
    )
    parser.addoption(
        "--without",
        choices=MUTATIONS,
        help="let this kind of fault not happen, and see that every test that injects it fails",
    )


def matrix_cells(config: pytest.Config) -> list[Cell]:
    """The cells to run on; none without ``--matrix``."""
    wanted = config.getoption("--matrix").split(",")
    if unknown := set(wanted) - {"", "all", *map(str, CELLS)}:
        raise pytest.UsageError(
            f"--matrix: no cell {', '.join(unknown)}; there are {', '.join(map(str, CELLS))}"
        )
    return [cell for cell in CELLS if "all" in wanted or str(cell) in wanted]


def pytest_configure(config: pytest.Config) -> None:
    # Known where pytest-xdist is not, too.
    config.addinivalue_line("markers", "xdist_group(name): these tests run one after the other")
    if fault := config.getoption("--without"):
        config.pluginmanager.register(Without(MUTATIONS[fault]))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from what is imported and collected, which stays until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let tests that share run in one process: those of a file, of an engine, and of one kind of services.

    Then what they share starts once. All others run wherever there is time.
    """
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    group = parameters.get("contract_services")
    if "managed" in getattr(item, "fixturenames", ()):
        group = "managed"
    elif group is None and ("engine" in item.path.parts or 'scope="module"' in item.path.read_text("utf-8")):
        group = item.path
    if group is not None:
        item.add_marker(pytest.mark.xdist_group(str(group)))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a process says of its services."""
    if announcement := getattr(node, "workeroutput", {}).get("services"):
        node.config.stash[ANNOUNCEMENT] = announcement


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over to pytest-xdist, if it runs this process, which services the tests had."""
    output = getattr(session.config, "workeroutput", {})
    output["services"] = session.config.stash.get(ANNOUNCEMENT, None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "services" in metafunc.fixturenames and (cells := matrix_cells(metafunc.config)):
        metafunc.parametrize("services", cells, ids=str, indirect=True, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a matrix, leave out all other tests, and run one cell after the other.

    What takes minutes comes first: at the end it would run alone.
    """
    items.sort(key=lambda item: LONGEST.isdisjoint(item.path.parts))
    if getattr(config.option, "loadgroup", False) and hasattr(pytest.Item, "id"):
        # pytest-xdist 3.8 writes the group of a test where pytest 9.2 does not read it.
        for item in items:
            if (group := item.get_closest_marker("xdist_group")) is not None:
                item._id = type(item.id).parse(f"{item.nodeid}@{group.args[0]}")
    if cells := matrix_cells(config):
        config.hook.pytest_deselected(items=[item for item in items if cell_of(item) is None])
        items[:] = [item for item in items if cell_of(item) is not None]
        items.sort(key=lambda item: cells.index(cell_of(item) or cells[0]))


def cell_of(item: pytest.Item) -> Cell | None:
    """The cell that a test runs on, if it is one of the matrix."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    cells = [value for value in parameters.values() if isinstance(value, Cell)]
    return cells[0] if cells and item.get_closest_marker(cells[0].marker) is not None else None


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers of the matrix, one at a time."""
    servers = Servers()
    yield servers
    servers.close()


def cell_services(request: pytest.FixtureRequest) -> Services:
    """Running services of the cell that a fixture was given."""
    if (reason := unavailable_reason(request.param.version)) is not None:
        needed = ServicesChoice.NATIVE if request.param.version == BASELINE.version else ServicesChoice.DOCKER
        report = pytest.fail if needed in request.config.getoption("--require-services") else pytest.skip
        report(f"RabbitMQ {request.param.version} cannot run here: {reason}")
    return request.getfixturevalue("servers").services(request.param)


@pytest.fixture(autouse=True)
def cell(request: pytest.FixtureRequest) -> Iterator[Cell | None]:
    """The cell that this test runs on. All settings that it makes have the cell's type of queues."""
    cell = cell_of(request.node)
    # Not the fixture of the test itself, which may undo its changes before its end.
    with pytest.MonkeyPatch.context() as patch:
        if cell is not None:
            patch.setenv("INFERFLEET_QUEUE_TYPE", cell.queue_type)
        yield cell


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Services]:
    """Running services of the kind that ``--services`` names, or of a cell of the matrix."""
    if isinstance(getattr(request, "param", None), Cell):
        yield cell_services(request)
        return
    amqp_url = os.environ.get("INFERFLEET_AMQP_URL")
    redis_url = os.environ.get("INFERFLEET_REDIS_URL")
    choice = ServicesChoice(pytestconfig.getoption("--services"))
    if choice is ServicesChoice.AUTO and amqp_url is None and redis_url is None:
        choice = next(kind for kind in PREFERRED if source_of(kind).unavailable_reason() is None)
    with running_services(choice, amqp_url=amqp_url, redis_url=redis_url) as running:
        print(running.announcement)  # noqa: T201 - pytest shows it with -s and when a test fails
        pytestconfig.stash[ANNOUNCEMENT] = running.announcement
        yield running


@pytest.fixture(scope="session")
def managed(pytestconfig: pytest.Config) -> Iterator[Services]:
    """Native services with RabbitMQ's HTTP API, which a test may kill if it starts them again."""
    if (unavailable := source_of(ServicesChoice.NATIVE).unavailable_reason()) is not None:
        required = ServicesChoice.NATIVE in pytestconfig.getoption("--require-services")
        (pytest.fail if required else pytest.skip)(unavailable)
    with running_services(ServicesChoice.NATIVE, management=True, fsync=Fsync.ALWAYS) as running:
        yield running


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    """Let a socket or task that a test leaves open be the error of that test, and not of a later one.

    Only what is young is collected: all of it would take longer than most tests.
    """
    yield
    gc.collect(1)


Control = Callable[..., Awaitable[str]]


@pytest.fixture
def control(services: Services) -> Control:
    """Run ``rabbitmqctl`` on the broker."""
    broker = services.broker
    if broker is None:
        pytest.skip(f"there is no rabbitmqctl for these services: {services.description}")

    async def run(*arguments: str) -> str:
        return await asyncio.to_thread(broker.control, *arguments)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say at the end which services the tests ran on."""
    announcement = config.stash.get(ANNOUNCEMENT, None)
    if announcement is not None:
        terminalreporter.write_line(announcement)
