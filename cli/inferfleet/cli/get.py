"""``inferfleet get``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from inferfleet.cli.going_on import goes_on, several_go_on
from inferfleet.cli.options import JsonFlag, none_empty, producer_settings
from inferfleet.cli.printing import print_answer, print_json
from inferfleet.cli.reading import STANDARD, read_text
from inferfleet.cli.terminal import err
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.errors import (
    JobDataLostError,
    JobFailedError,
    JobNotFoundError,
    WaitTimeoutError,
)
from inferfleet.schemas.result import JobRecord
from inferfleet.wire.tasks import cancel_and_wait

AT_ONCE = 500
"""How many records are read at the same time."""

Missing = JobNotFoundError | JobDataLostError


def command(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB",
            help="Job ids, as printed by `submit`; `-` reads ids from stdin.",
            callback=none_empty,
        ),
    ],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the jobs have ended.")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Limit of --wait; the jobs continue.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the states of jobs, and the answers of those that have ended.

    Answers go to stdout and states to stderr. With --json every job is a line. With --wait the jobs come in
    the order in which they end, and a terminal shows how many have ended. Exits with 1 unless all jobs that
    have ended succeeded.
    """
    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout limits --wait: give both")
    ids = [each for job in jobs for each in (read_text(STANDARD).split() if job == "-" else [job])]
    if not ids:
        raise typer.BadParameter("stdin has no job ids")
    asyncio.run(_get(list(dict.fromkeys(ids)), wait=wait, timeout_s=timeout, as_json=as_json))


async def _get(ids: Sequence[str], *, wait: bool, timeout_s: float | None, as_json: bool) -> None:
    shown, problems = 0, 0
    async with Fleet.connect(producer_settings()) as fleet:
        reading = _as_they_end(fleet, ids, timeout_s) if wait else _as_they_are(fleet, ids)
        several = several_go_on(lambda: len(ids) - shown)
        early = goes_on(ids[0], "get --wait") if len(ids) == 1 else several
        with early if wait else nullcontext(), _Bar(len(ids) if wait else 0) as bar:
            async with aclosing(reading):
                async for found in reading:
                    with bar.aside():
                        problem = _show(found, named=len(ids) > 1, as_json=as_json)
                        if problem is not None:
                            err(f"inferfleet: {problem}\n")
                    problems += problem is not None
                    shown += 1
    if problems:
        raise typer.Exit(1)


async def _as_they_are(fleet: Fleet, ids: Sequence[str]) -> AsyncGenerator[JobRecord | Missing]:
    for first in range(0, len(ids), AT_ONCE):
        reads = [_read(fleet, job_id) for job_id in ids[first : first + AT_ONCE]]
        for found in await asyncio.gather(*reads):
            yield found


async def _as_they_end(
    fleet: Fleet, ids: Sequence[str], timeout_s: float | None
) -> AsyncGenerator[JobRecord | Missing]:
    reads = [asyncio.create_task(_read(fleet, job_id, wait=True)) for job_id in ids]
    try:
        for ended in asyncio.as_completed(reads, timeout=timeout_s):
            yield await ended
    except TimeoutError as error:
        which = f"job {ids[0]} has not" if len(ids) == 1 else f"not all of the {len(ids):,} jobs have"
        raise WaitTimeoutError(f"{which} ended within {timeout_s:g} s; wait longer, or again") from error
    finally:
        await cancel_and_wait(*reads)


async def _read(fleet: Fleet, job_id: str, *, wait: bool = False) -> JobRecord | Missing:
    try:
        if wait:
            await fleet.wait(job_id)
        return await fleet.get(job_id)
    except (JobNotFoundError, JobDataLostError) as error:
        return error


def _show(found: JobRecord | Missing, *, named: bool, as_json: bool) -> Missing | JobFailedError | None:
    """Print what was found of a job. Return what is wrong with it."""
    if not isinstance(found, JobRecord):
        return found
    if as_json:
        print_json(found)
    else:
        whose = f"{found.id}: " if named else ""
        where = f" on {found.worker_id}" if found.worker_id else ""
        model = f" of model {found.model_identity}" if found.model_identity else ""
        err(f"{whose}{found.state}, attempt {found.attempt}{where}, {found.tokens} tokens{model}\n")
    try:
        if found.result is not None and as_json:
            found.result.raise_for_state()
        elif found.result is not None:
            print_answer(found.result)
            sys.stdout.flush()
    except JobFailedError as error:
        return error
    return None


class _Bar:
    """Shows on a terminal how many jobs have ended, if there are several."""

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=total < 2 or not console.is_interactive,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def aside(self) -> Generator[None]:
        """Take the bar away while the block prints about one more job."""
        self._progress.stop()
        yield
        self._progress.advance(self._task)
        self._progress.start()
