"""What the packages for users offer: few names, sorted, and cheap to import."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import inferfleet.agents as agents
import inferfleet.producer as producer
import inferfleet.schemas as schemas
import inferfleet.testing as testing
import inferfleet.worker as worker

NAMES = {
    agents: [
        "Agent",
        "AgentRuns",
        "AgentTool",
        "Decision",
        "McpServer",
        "Prices",
        "Question",
        "RunLimits",
        "Tool",
        "ToolContext",
        "search_tool",
        "tool",
    ],
    schemas: [
        "Endpoint",
        "Failure",
        "FailureCode",
        "Job",
        "JobRecord",
        "JobState",
        "JournalEntry",
        "Priority",
        "Result",
        "Timings",
        "Usage",
    ],
    producer: [
        "Fleet",
        "Index",
        "JobFilter",
        "JobHandle",
        "JobOptions",
        "JournalLine",
        "Session",
        "SyncFleet",
        "SyncIndex",
        "SyncJobHandle",
        "SyncSession",
        "openai_client",
    ],
    testing: ["RunningWorker", "SyncRunningWorker", "SyncWorkers", "Workers"],
    worker: [
        "Completion",
        "Engine",
        "EngineDeadError",
        "EngineStats",
        "Generation",
        "GenerationError",
        "ModelIdentity",
        "NotContinuableError",
        "PromptReader",
        "TokenChunk",
        "text_completion",
    ],
}


def loaded_by(statement: str) -> set[str]:
    """Run a statement in an interpreter of its own; returns the modules it loaded."""
    program = f"import sys; {statement}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


@pytest.mark.parametrize("package", NAMES, ids=lambda package: package.__name__)
def test_the_public_names_are_these(package: ModuleType) -> None:
    assert package.__all__ == NAMES[package] == sorted(package.__all__)
    for name in package.__all__:
        assert hasattr(package, name)
    assert package.__doc__


def test_the_contract_loads_no_network_library() -> None:
    modules = ("documents", "request", "settings")
    loaded = loaded_by("import " + ", ".join(f"inferfleet.schemas.{module}" for module in modules))
    assert not {"aio_pika", "redis", "aiohttp"} & loaded


def test_a_client_loads_nothing_of_the_worker() -> None:
    # redis-py imports OpenTelemetry's SDK wherever it is installed.
    loaded = loaded_by("sys.modules['opentelemetry.sdk'] = None; import inferfleet.producer")
    assert not {name for name in loaded if name.startswith(("inferfleet.worker", "inferfleet.local"))}
    assert not {"aiohttp", "httpx2", "openai", "opentelemetry.trace", "prometheus_client", "uvloop"} & loaded


def test_an_engine_loads_no_network_library() -> None:
    """vLLM starts processes of its own, which load the adapter and must not load a broker's client."""
    loaded = loaded_by("import inferfleet.worker")
    assert not {"aio_pika", "redis", "aiohttp"} & loaded


@pytest.mark.parametrize(
    "package", ["schemas", "wire", "producer", "exporter", "worker", "agents", "cli", "local", "testing"]
)
def test_every_package_tells_type_checkers_that_it_is_typed(package: str) -> None:
    from importlib.resources import files

    assert files(f"inferfleet.{package}").joinpath("py.typed").is_file()


def test_the_namespace_has_no_init_of_its_own() -> None:
    """With one, the source roots could not be parts of the same package."""
    import inferfleet

    assert inferfleet.__file__ is None
    assert len(list(inferfleet.__path__)) >= 1


def test_the_pytest_plugin_loads_nothing_that_no_test_uses() -> None:
    """pytest loads it in every project that has this package installed."""
    loaded = loaded_by("import inferfleet.testing.plugin")
    assert not {"pydantic", "redis", "aio_pika", "aiohttp", "docker", "fakeredis", "testcontainers"} & loaded
    assert {name for name in loaded if name.startswith("inferfleet.")} == {
        "inferfleet.testing",
        "inferfleet.testing.plugin",
    }
