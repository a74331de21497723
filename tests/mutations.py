"""Faults that do not happen: a test that injects one of them must fail then, or it proves nothing.

``pytest --without hold`` turns ``Proxy.hold`` into a no-op, and runs the tests that inject such a fault.
It succeeds if each test that injected it failed. `make mutate` does so for every fault.
"""

from __future__ import annotations

import ast
import inspect
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.matrix import ContainerBroker

from inferfleet.local.chaos.producers import ProducerProcess
from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess
from inferfleet.local.services.redis_process import RedisProcess
from inferfleet.local.worker_processes import WorkerProcess

TESTS = Path(__file__).parent

INJECTED = "injected"
"""The property of a test that has called what injects the fault."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One kind of fault: the methods that inject it, and the words by which a test is known to use it."""

    methods: tuple[tuple[type, str], ...]
    words: tuple[str, ...]
    signal: signal.Signals | None = None
    """Only calls with this signal are such a fault."""


_CRASH = ("crash(", "kill(", "restart_broker(", "restart_store(", "empty_store(")

MUTATIONS: Mapping[str, Mutation] = {
    "hold": Mutation(((Proxy, "hold"), (Proxy, "hold_answers_to")), (".hold(", ".hold_answers_to(")),
    "reset": Mutation(((Proxy, "reset"),), (".reset(",)),
    "strand": Mutation(((Proxy, "strand"),), (".strand(",)),
    "kill": Mutation(
        tuple(
            (owner, "kill")
            for owner in (WorkerProcess, ProducerProcess, RabbitMQProcess, RedisProcess, ContainerBroker)
        ),
        _CRASH,
    ),
    "stop": Mutation(((WorkerProcess, "send_signal"),), ("SIGSTOP",), signal=signal.SIGSTOP),
}


class Without:
    """The plugin of one run in which one kind of fault does not happen."""

    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation
        self._running: pytest.Item | None = None
        """The test that runs, outside its teardown: what ends there is to end."""
        self._injected: set[str] = set()
        self._failed: set[str] = set()

    @property
    def survivors(self) -> set[str]:
        """Tests that injected the fault and passed all the same."""
        return self._injected - self._failed

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if self._may_inject(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        with self._patched():
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._running = item

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        self._running = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # The test may have run in a process of pytest-xdist: reports come from there, this object does not.
        if INJECTED in dict(report.user_properties):
            self._injected.add(report.nodeid)
        if report.failed:
            self._failed.add(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            session.exitstatus = int(bool(self.survivors or not self._injected))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"{len(self._injected)} tests injected the fault")
        for survivor in sorted(self.survivors):
            terminalreporter.write_line(f"SURVIVED without its fault: {survivor}")

    def _may_inject(self, item: pytest.Item) -> bool:
        texts = (_shared(item.path), inspect.getsource(getattr(item, "function", type(item))))
        return any(word in text for word in self._mutation.words for text in texts)

    @contextmanager
    def _patched(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in self._mutation.methods:
                patch.setattr(owner, name, self._instead_of(getattr(owner, name)))
            yield

    def _instead_of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def nothing() -> None:
            pass

        def instead(*arguments: Any) -> Any:
            only = self._mutation.signal
            if self._running is None or not _is_of_a_test(method) or (only and only not in arguments):
                return method(*arguments)
            self._running.user_properties.append((INJECTED, True))
            return nothing() if inspect.iscoroutinefunction(method) else None

        return instead


@cache
def _shared(path: Path) -> str:
    """What a file has beside its tests: its fixtures, and what tests call."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return "".join(ast.unparse(node) for node in body if not getattr(node, "name", "").startswith("test_"))


def _is_of_a_test(method: Callable[..., Any]) -> bool:
    """Whether a test breaks its links itself: after a kill they are broken only to lose what is under way."""
    return method.__name__ != "reset" or TESTS in Path(sys._getframe(2).f_code.co_filename).parents
