"""Help and imports: each command is loaded when it is called, and needs only its own part installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points, version
from typing import Any

import pytest
from tests.patience import PATIENCE_S
from typer.main import get_command

from inferfleet.cli.failing import exit_code
from inferfleet.cli.root import COMMANDS, build
from inferfleet.schemas.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    InferfleetError,
    InvalidJobError,
    JobFailedError,
    JobNotFoundError,
    PublishUnconfirmedError,
    QueueFullError,
    ServiceUnreachableError,
    UnknownPoolError,
)

HEAVY = (
    "aio_pika",
    "aiormq",
    "redis",
    "pydantic",
    "aiohttp",
    "prometheus_client",
    "orjson",
    "rich",
    "asyncio",
)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


MAIN = "from inferfleet.cli import main; main()"


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    ended = run(f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {MAIN}", "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    page, _, modules = ended.stdout.rstrip().rpartition("\n")
    for name, place in COMMANDS.items():
        assert name in page
        assert place.help[:40] in page
    assert not {module.partition(".")[0] for module in modules.split()} & set(HEAVY)


def test_the_garbage_collector_skips_what_a_command_has_imported() -> None:
    look = "import atexit, gc; atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count()))"
    ended = run(f"{look}; {MAIN}", "get", "--help")
    enabled, frozen = ended.stdout.split()[-2:]
    assert enabled == "True"
    assert int(frozen) > 10_000


def test_the_version_is_that_of_the_distribution() -> None:
    ended = run(MAIN, "--version")
    assert (ended.returncode, ended.stdout) == (0, version("inferfleet") + "\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_loaded_and_says_what_it_does(name: str) -> None:
    module = import_module(COMMANDS[name].module)
    assert hasattr(module, "app") != hasattr(module, "command")


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A command, and those of its group, with how each is called."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_argument_and_option_says_what_it_is_for(name: str) -> None:
    root = get_command(build([name]))
    for path, command in commands(getattr(root, "commands", {})[name], name):
        assert command.help, path
        assert "[[" not in command.get_usage(command.context_class(command, info_name=path)), path
        for param in command.params:
            assert param.help, f"{path} {param.name}"


def test_a_command_whose_part_is_not_installed_says_what_to_install() -> None:
    ended = run(f"import sys; sys.modules['uvloop'] = None; {MAIN}", "worker", "--help")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "needs the package 'uvloop': pip install 'inferfleet[worker]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("script", "absent"), [("chaos", "aiohttp"), ("explore", "fakeredis")])
def test_a_script_whose_part_is_not_installed_says_what_to_install(script: str, absent: str) -> None:
    (entry,) = entry_points(group="console_scripts", name=f"inferfleet-{script}")
    module, _, function = entry.value.partition(":")
    ended = run(f"import sys; sys.modules[{absent!r}] = None; from {module} import {function}; {function}()")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        f"`inferfleet-{script}` needs the package {absent!r}: pip install 'inferfleet[local]'" in ended.stderr
    )
    assert "Traceback" not in ended.stderr


def test_a_producer_needs_no_part_of_the_worker() -> None:
    """The core install lacks all of these, and everything that publishes works."""
    absent = ("aiohttp", "prometheus_client", "pythonjsonlogger", "uvloop", "fakeredis", "testcontainers")
    hidden = "; ".join(f"sys.modules[{name!r}] = None" for name in absent)
    ended = run(
        f"import sys; {hidden}; import inferfleet.producer, inferfleet.cli.submit, inferfleet.cli.get, "
        "inferfleet.cli.stream, inferfleet.cli.cancel, inferfleet.cli.pool, inferfleet.cli.schema, "
        "inferfleet.cli.dead"
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobFailedError(job_id="x", state="failed", code=None, message="m"), 1),
        (JobNotFoundError("x"), 1),
        (QueueFullError("m"), 1),
        (PublishUnconfirmedError("m"), 1),
        (InferfleetError("m"), 1),
        (InvalidJobError("m"), 2),
        (IdempotencyConflictError("m"), 2),
        (UnknownPoolError("m"), 2),
        (ConfigurationError("m"), 2),
        (ServiceUnreachableError("m"), 3),
    ],
)
def test_every_error_has_its_exit_code(error: InferfleetError, code: int) -> None:
    assert exit_code(error) == code
