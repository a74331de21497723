"""What a person sees while the demo runs: a live picture on a terminal, else a few plain lines."""

from __future__ import annotations

import time
from textwrap import shorten
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from inferfleet.cli.terminal import err, line
from inferfleet.local.demo.progress import Progress, UrgentStream
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.printable import printable

PLAIN_INTERVAL_S = 3.0
PLAIN_TEXT_WIDTH = 300
BAR_WIDTH = 40


class View(Protocol):
    """Shows how the demo goes. A context manager: at its end the terminal is as it was."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        ...

    def say(self, text: str) -> None:
        """Print something that stays."""
        ...

    def show(self, progress: Progress) -> None:
        """Show how far it is. Called some times a second."""
        ...


class PlainLines:
    """A line on stderr every few seconds."""

    def __init__(self) -> None:
        self._next_line = 0.0
        self._urgent_told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, text: str) -> None:
        """Print to stderr."""
        err(f"{text}\n")

    def show(self, progress: Progress) -> None:
        """Print a line if it is time for one, and the urgent job once it has its answer."""
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_INTERVAL_S
            self.say(
                f"{progress.elapsed_s:5.1f} s  {progress.finished} of {progress.total} done, "
                f"{_number(progress.queued)} queued, {progress.running} running, "
                f"{progress.tokens_per_s:,.0f} tokens/s"
            )
        urgent = progress.urgent
        if urgent is not None and urgent.finished_s is not None and not self._urgent_told:
            self._urgent_told = True
            self.say(f"{_urgent_title(urgent)}:\n    {shorten(urgent.text, PLAIN_TEXT_WIDTH)}")


class LivePicture:
    """A picture on the terminal that is drawn anew some times a second."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print above the picture."""
        self._live.console.print(printable(text), markup=False, highlight=False)

    def show(self, progress: Progress) -> None:
        """Draw."""
        if not self._live.is_started:
            self._live.start()
        self._live.update(picture(progress), refresh=True)


def picture(progress: Progress) -> RenderableType:
    """Draw the whole picture."""
    numbers = Table.grid(padding=(0, 4))
    numbers.add_row("queued", "running", "tokens/s", "seconds", style="dim")
    numbers.add_row(
        _number(progress.queued),
        f"{progress.running:,}",
        f"{progress.tokens_per_s:,.0f}",
        f"{progress.elapsed_s:.1f}",
        style="bold",
    )
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=progress.total, completed=progress.finished, width=BAR_WIDTH),
        f"{progress.finished:,} of {progress.total:,} jobs",
    )
    workers = Table.grid(padding=(0, 4))
    for number, worker in enumerate(progress.workers, start=1):
        workers.add_row(f"worker {number}", *_worker(worker))
    return Group("", numbers, "", bar, "", workers, "", _urgent(progress.urgent))


def _worker(worker: Heartbeat | None) -> tuple[str, ...]:
    if worker is None:
        return ("does not answer",)
    return (
        f"{worker.running} running",
        f"{worker.waiting} waiting in the engine",
        f"KV memory {worker.kv_cache_usage:.0%}",
    )


def _urgent(urgent: UrgentStream | None) -> RenderableType:
    if urgent is None:
        return Text("An urgent job comes when a third is done.", style="dim")
    return Panel(Text(line(urgent.text)), title=_urgent_title(urgent), title_align="left")


def _urgent_title(urgent: UrgentStream) -> str:
    if urgent.first_token_s is None:
        return "urgent job, streamed: waiting for its first token"
    title = f"urgent job, streamed: first token after {urgent.first_token_s:.2f} s"
    return title if urgent.finished_s is None else f"{title}, finished after {urgent.finished_s:.2f} s"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
