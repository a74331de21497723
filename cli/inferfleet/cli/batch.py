"""``inferfleet batch``: runs the requests of a file, and continues after any interruption."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, cast

import orjson
import typer

from inferfleet.cli.batch_progress import showing_progress
from inferfleet.cli.failing import INTERRUPTED
from inferfleet.cli.options import JsonFlag, PoolOption, PriorityOption, not_empty, producer_settings
from inferfleet.cli.reading import STANDARD
from inferfleet.cli.terminal import err, line, out
from inferfleet.producer.batch import Batch, BatchPlan, BatchProgress, batch_status, stop_run
from inferfleet.producer.batch.batch import DEFAULT_IN_FLIGHT
from inferfleet.producer.batch.files import read_record, sync_folder
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_making import JobOptions, read_priority
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.errors import (
    BatchError,
    BatchOutputError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.job import DEFAULT_MAX_ATTEMPTS, DEFAULT_POOL
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.settings import ProducerSettings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

SHOW_CURSOR: Final = "\x1b[?25h"

OutputArgument = Annotated[
    Path, typer.Argument(metavar="OUTPUT", help="Output file of the batch.", dir_okay=False)
]


@app.callback()
def batch() -> None:
    """Batches: many requests from a file, with the answers in another file."""


@app.command()
def run(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="File with a request in OpenAI's batch format, or a prompt, on each line; `-` reads stdin.",
            dir_okay=False,
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the answers.", dir_okay=False)],
    errors: Annotated[
        Path | None,
        typer.Option(help="File for lines without an answer; by default beside the output.", dir_okay=False),
    ] = None,
    pool: PoolOption = DEFAULT_POOL,
    priority: PriorityOption = "batch",
    timeout: Annotated[float | None, typer.Option(help="Time limit of an attempt in seconds.")] = None,
    max_attempts: Annotated[int, typer.Option(help="How often a job may be tried.")] = DEFAULT_MAX_ATTEMPTS,
    max_in_flight: Annotated[
        int, typer.Option(min=1, max=20_000, help="Maximum number of jobs that are queued or run at once.")
    ] = DEFAULT_IN_FLIGHT,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="If all lines are done, run the failed ones again.")
    ] = False,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Every line is a prompt, also if the first begins with {.")
    ] = False,
    endpoint: Annotated[Endpoint | None, typer.Option(help="Endpoint for prompts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the model in the requests for prompts.", callback=not_empty)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens to generate for a prompt.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature for prompts.")] = None,
    system: Annotated[
        str | None, typer.Option(help="System message before each prompt.", callback=not_empty)
    ] = None,
) -> None:
    """Run every line of a file, and write each answer as it comes. The same command continues the batch.

    After Ctrl-C, a crash or a reboot, no line runs twice and no answer is missing. Exits with 1 if some
    lines have no answer: the error file says why.
    """
    options: dict[str, Any] = {
        "pool": pool,
        "priority": read_priority(priority),
        "timeout_s": timeout,
        "max_attempts": max_attempts,
        "endpoint": endpoint,
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "system": system,
    }
    command = ["inferfleet", *sys.argv[1:]]
    given = {name: value for name, value in options.items() if value is not None}
    settings = producer_settings()
    if output == STANDARD:
        raise BatchError("the output has to be a file: a batch that continues reads it")
    with ExitStack() as stack:
        if source == STANDARD:
            source = stack.enter_context(_copy_of_stdin(output))
            command = [str(source) if Path(word) == STANDARD else word for word in command]
        plan = BatchPlan(
            source=source, output=output, errors=errors, prompts=prompts, options=cast("JobOptions", given)
        )
        batch = stack.enter_context(Batch.opened(plan, settings, retry_failed=retry_failed))
        with _going_on(batch, command):
            progress = asyncio.run(_run(batch, settings, max_in_flight))
    err(
        f"inferfleet: {count_of(progress.lines, 'line')}: {progress.succeeded:,} answered in {output}, "
        f"{progress.failed:,} failed" + (f", see {batch.error_file}\n" if progress.failed else "\n")
    )
    if progress.failed:
        raise typer.Exit(1)


@app.command()
def status(output: OutputArgument, *, as_json: JsonFlag = False) -> None:
    """Show how far a batch is. Asks no service."""
    found = batch_status(output)
    record = found.record
    error_file = record.error_file(output)
    if as_json:
        _print_json(
            {
                "id": record.id,
                "input": str(record.source),
                "output": str(output.absolute()),
                "errors": str(error_file),
                "lines": record.lines,
                "succeeded": found.succeeded,
                "failed": found.failed,
                "running": found.running,
            }
        )
        return
    rest = record.lines - found.succeeded - found.failed
    going_on = "a run is going on" if found.running else "no run is going on"
    out(f"{count_of(record.lines, 'line')} in {line(str(record.source))}\n")
    out(f"{found.succeeded:,} answered in {line(str(output))}\n")
    out(f"{found.failed:,} failed, in {line(str(error_file))}\n")
    out(f"{rest:,} open; {going_on}\n")


@app.command()
def cancel(output: OutputArgument, *, as_json: JsonFlag = False) -> None:
    """Cancel all lines of a batch that are not done. Lines whose job has ended keep their answer.

    First stops the run of the batch, if one is going on, on this machine or another.
    """
    settings = producer_settings()
    asyncio.run(stop_run(output))
    with Batch.reopened(output, settings) as batch:
        before = batch.progress()
        after = asyncio.run(_cancel(batch, settings))
    answers, cancelled = after.succeeded - before.succeeded, after.failed - before.failed
    if as_json:
        _print_json({"succeeded": answers, "failed": cancelled})
    else:
        out(f"{count_of(cancelled, 'line')} cancelled or failed, {count_of(answers, 'more answer')}\n")


async def _run(batch: Batch, settings: ProducerSettings, max_in_flight: int) -> BatchProgress:
    with _interrupts(), showing_progress() as tell:
        async with Fleet.connect(batch.client_settings(settings)) as fleet:
            return await batch.run(fleet, max_in_flight=max_in_flight, tell=tell)


async def _cancel(batch: Batch, settings: ProducerSettings) -> BatchProgress:
    with showing_progress() as tell:
        async with Fleet.connect(batch.client_settings(settings)) as fleet:
            return await batch.cancel(fleet, tell=tell)


@contextmanager
def _interrupts() -> Generator[None]:
    """Let the first Ctrl-C cancel this task, and the second end the process at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if interrupted:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), SHOW_CURSOR.encode())
            os._exit(INTERRUPTED)
        interrupted = True
        if task is not None:
            task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextmanager
def _going_on(batch: Batch, command: list[str]) -> Generator[None]:
    """If the block ends before the batch, say how to continue."""
    try:
        yield
    except (
        asyncio.CancelledError,
        KeyboardInterrupt,
        BatchOutputError,
        ServiceRefusedError,
        ServiceUnreachableError,
    ) as error:
        progress = batch.progress()
        err(
            f"inferfleet: {progress.done:,} of {progress.lines:,} lines are done; jobs in flight continue. "
            f"Go on with:\n  {shlex.join(command)}\n"
        )
        if isinstance(error, asyncio.CancelledError):
            raise typer.Exit(INTERRUPTED) from None
        raise


@contextmanager
def _copy_of_stdin(output: Path) -> Generator[Path]:
    """Copy stdin to a file beside the output: a batch that continues needs its input again.

    The copy is on disk before the batch begins. If it does not begin, the copy is deleted.
    """
    copy = output.with_name(f"{output.name}.input")
    if read_record(output) is not None:
        raise BatchError(f"{output} has a batch already, whose input was copied: continue it with {copy}")
    try:
        file = copy.open("xb")
    except FileExistsError as error:
        raise BatchError(f"{copy} exists, where the copy of stdin would be: move it away") from error
    except OSError as error:
        raise BatchOutputError(f"cannot write {copy}: {error.strerror}") from error
    try:
        try:
            with file:
                shutil.copyfileobj(sys.stdin.buffer, file)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(copy.parent)
        except OSError as error:
            raise BatchOutputError(f"cannot write {copy}: {error.strerror}") from error
        yield copy
    finally:
        if read_record(output) is None:
            copy.unlink()


def _print_json(value: object) -> None:
    out(orjson.dumps(value).decode() + "\n")
