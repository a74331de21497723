"""Shows how far a batch is: a bar on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from inferfleet.cli.terminal import err, line
from inferfleet.producer.batch import BatchProgress

LINE_EVERY_S: Final = 10.0
"""How often the progress is a line where there is no terminal."""


@contextmanager
def showing_progress() -> Generator[Callable[[BatchProgress], None]]:
    """Yield a function that shows the progress on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().show
        return
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(progress: BatchProgress) -> None:
            bar.update(task, total=progress.lines, completed=progress.done, description=described(progress))

        yield show


def described(progress: BatchProgress) -> str:
    """Describe the rates, what is left, and what is wrong."""
    parts = [f"{progress.per_s:,.1f} lines/s", f"{progress.tokens_per_s:,.0f} tokens/s"]
    if progress.remaining_s is not None:
        parts.append(f"{timedelta(seconds=round(progress.remaining_s))} left")
    parts.append(f"{progress.in_flight:,} of at most {progress.limit:,} in flight")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.trouble:
        parts.append(f"waiting: {line(progress.trouble)}")
    return ", ".join(parts)


class _Lines:
    """Writes a line from time to time, and when something goes wrong."""

    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_EVERY_S
        self._troubled = False

    def show(self, progress: BatchProgress) -> None:
        troubled = bool(progress.trouble)
        begins, self._troubled = troubled and not self._troubled, troubled
        if time.monotonic() < self._next and not begins:
            return
        self._next = time.monotonic() + LINE_EVERY_S
        err(f"inferfleet: {progress.done:,} of {progress.lines:,} lines, {described(progress)}\n")
