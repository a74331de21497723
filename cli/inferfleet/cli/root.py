"""The root command: which commands exist, and which module each is in.

This module imports nothing but typer, so that ``--help`` is quick.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup


class CommandModule(NamedTuple):
    """The module of a command, and its line in the overview.

    The module has either ``command``, a function, or ``app``, a group of commands.
    """

    module: str
    help: str
    extra: str = ""


COMMANDS: Mapping[str, CommandModule] = MappingProxyType(
    {
        "submit": CommandModule(
            "inferfleet.cli.submit", "Submit a job; print its id, its answer, or its tokens."
        ),
        "get": CommandModule("inferfleet.cli.get", "Show a job's state and its answer."),
        "stream": CommandModule("inferfleet.cli.stream", "Print a job's tokens as they arrive."),
        "cancel": CommandModule("inferfleet.cli.cancel", "Cancel a job."),
        "batch": CommandModule(
            "inferfleet.cli.batch", "Run the requests of a file, and continue after any interruption."
        ),
        "chat": CommandModule("inferfleet.cli.chat", "Chat with a model in a session."),
        "session": CommandModule(
            "inferfleet.cli.session", "Show, list, fork, delete, export or import sessions."
        ),
        "agent": CommandModule(
            "inferfleet.cli.agent", "Run agents; start, list, show, replay, cancel or answer their runs."
        ),
        "index": CommandModule(
            "inferfleet.cli.index", "Create, fill, search, list or delete indexes of documents."
        ),
        "dead": CommandModule("inferfleet.cli.dead", "List, show, replay or purge dead letters."),
        "jobs": CommandModule("inferfleet.cli.jobs", "List, show, cancel or retry many jobs."),
        "pool": CommandModule("inferfleet.cli.pool", "Declare, list, show, pause or resume pools."),
        "rollout": CommandModule(
            "inferfleet.cli.rollout", "Move a pool's jobs to a new version, step by step."
        ),
        "top": CommandModule("inferfleet.cli.top.command", "Watch the fleet live, or print one snapshot."),
        "doctor": CommandModule("inferfleet.cli.doctor", "Look for what is wrong with the fleet."),
        "schema": CommandModule("inferfleet.cli.schema", "Export the contract as JSON Schema and AsyncAPI."),
        "worker": CommandModule(
            "inferfleet.cli.worker", "Run a worker, list the workers, or drain one.", "worker"
        ),
        "model": CommandModule(
            "inferfleet.cli.model",
            "Change the model of running workers; probe, list and check models.",
            "worker",
        ),
        "exporter": CommandModule(
            "inferfleet.cli.exporter", "Serve metrics of the whole fleet for Prometheus.", "worker"
        ),
        "gateway": CommandModule(
            "inferfleet.cli.gateway",
            "Serve OpenAI's API in front of the queue, and jobs over HTTP.",
            "gateway",
        ),
        "keys": CommandModule(
            "inferfleet.cli.keys", "Create, list, rotate or revoke API keys of the gateway."
        ),
        "demo": CommandModule(
            "inferfleet.local.cli.demo", "Watch a whole fleet work on this machine.", "local"
        ),
        "autoscale": CommandModule(
            "inferfleet.local.cli.autoscale", "Scale local workers as KEDA and the HPA would.", "local"
        ),
        "local": CommandModule(
            "inferfleet.local.cli.services", "Start RabbitMQ and Redis on this machine.", "local"
        ),
    }
)


class Root(TyperGroup):
    """The root command. Its errors quote the value that typer cannot read."""

    def invoke(self, ctx: Any) -> Any:
        """Invoke the command that is called."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            if isinstance(error.__cause__, ValidationError):
                from inferfleet.schemas.problems import sentence

                problems = error.__cause__.errors(include_url=False)
                error.message = "; ".join(sentence(problem, quoting=True) for problem in problems)
            raise


NAME = "inferfleet"

COMPLETING = "_INFERFLEET_COMPLETE"
"""A shell sets this variable when it asks how a command line can be completed."""


def main() -> None:
    """Run the command line. Print an ``InferfleetError`` as one line on stderr, without a traceback."""
    from inferfleet.cli.failing import Remarks, report_errors
    from inferfleet.cli.standard_streams import open_standard_streams

    open_standard_streams()
    remarks = logging.StreamHandler()
    remarks.setFormatter(Remarks())
    logging.basicConfig(handlers=[remarks])
    # A connection problem is reported once, as the error that it causes.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    arguments = sys.argv[1:]
    if COMPLETING in os.environ:
        arguments = _words_to_complete()
        # Anything else would appear in the midst of what the user types.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the end
    with report_errors():
        build(arguments)(prog_name=NAME)


def _words_to_complete() -> list[str]:
    """Return the words behind the command's name that the shell wants to have completed."""
    words = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return words.split()[1:]


def build(arguments: Sequence[str]) -> typer.Typer:
    """Make the command line. Import only the command that is called; the others have only their help line."""
    app = typer.Typer(
        cls=Root,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, place in COMMANDS.items():
        if name != called:
            app.command(name, help=place.help)(_not_called)
            continue
        module = import_command(f"inferfleet {name}", place.module, extra=place.extra)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("inferfleet"))
        raise typer.Exit


def root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """A message-queue worker fleet for LLM inference.

    INFERFLEET_AMQP_URL and INFERFLEET_REDIS_URL are the addresses of RabbitMQ and Redis.
    """


def _not_called() -> None:
    """Stand for a command in the overview."""


def import_command(command: str, module: str, *, extra: str) -> Any:
    """Import the module of a command, and keep it from the garbage collector.

    Raises:
        ConfigurationError: A package is missing that ``extra`` installs; the message says so.

    """
    # What is imported stays. Looking for garbage in it, again and again, would take a third of the start.
    gc.disable()
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").startswith("inferfleet"):
            raise
        from inferfleet.schemas.errors import ConfigurationError

        raise ConfigurationError(
            f"`{command}` needs the package {error.name!r}: pip install 'inferfleet[{extra}]'"
        ) from error
    finally:
        gc.enable()
    gc.freeze()
    return imported
