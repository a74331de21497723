"""Shows the demo while it runs: a live picture on a terminal, otherwise a few plain lines."""

from __future__ import annotations

import re
import time
from textwrap import indent
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from inferfleet.cli.terminal import err
from inferfleet.local.demo.progress import Progress, UrgentStream, WorkerView
from inferfleet.schemas.printable import printable

PLAIN_INTERVAL_S = 3.0
BAR_WIDTH = 40
SPACE = re.compile(r"\s+")
COLOURS = ("magenta", "cyan", "green", "yellow", "blue")


class View(Protocol):
    """Shows the demo. A context manager, which restores the terminal at its end."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        ...

    def say(self, text: str) -> None:
        """Print a line that stays."""
        ...

    def show(self, progress: Progress) -> None:
        """Show the progress. Called several times a second."""
        ...


class PlainLines:
    """A line on stderr every few seconds."""

    def __init__(self) -> None:
        self._next_line = 0.0
        self._told: list[str] = []
        self._text_told = False

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
        """Print a line if one is due, and the events of the urgent job."""
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_INTERVAL_S
            self.say(
                f"{progress.elapsed_s:5.1f} s  {progress.finished} of {progress.total} done, "
                f"{_number(progress.queued)} queued, {progress.running} running, "
                f"{progress.tokens_per_s:,.0f} tokens/s"
            )
        urgent = progress.urgent
        if urgent is None:
            return
        told, self._told = self._told, _story(progress, urgent)
        for sentence in self._told[len(told) :]:
            self.say(f"  {sentence}")
        if urgent.finished_s is not None and not self._text_told:
            self._text_told = True
            self.say(f"  {urgent.question}\n{_plain(progress, urgent)}")


class LivePicture:
    """A picture on the terminal that is redrawn several times a second."""

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
        workers.add_row(Text(f"worker {number}", style=_colour(number)), *_worker(worker))
    return Group("", numbers, "", bar, "", workers, "", _urgent(progress))


def _worker(worker: WorkerView) -> tuple[RenderableType, ...]:
    if worker.killed:
        return (Text("killed with SIGKILL", style="bold red"),)
    if worker.heartbeat is None:
        return ("does not answer",)
    return (
        f"{worker.heartbeat.running} running",
        f"{worker.heartbeat.waiting} waiting in the engine",
        f"KV memory {worker.heartbeat.kv_cache_usage:.0%}",
    )


def _urgent(progress: Progress) -> RenderableType:
    urgent = progress.urgent
    if urgent is None:
        return Text("An urgent job comes when a third is done.", style="dim")
    answer = Text()
    for passage in urgent.passages:
        # In the colour of the worker that generated it.
        text = _flowing(passage.text)
        answer.append(text if answer else text.lstrip(), _colour(progress.number(passage.worker_id)))
    return Group(
        Panel(Group(Text(urgent.question, style="dim"), answer), title="urgent job", title_align="left"),
        *(Text(sentence) for sentence in _story(progress, urgent)),
    )


def _flowing(text: str) -> str:
    """Return text from outside as a part of one line. Unlike ``line`` it keeps spaces at the ends."""
    return printable(SPACE.sub(" ", text), one_line=True)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _story(progress: Progress, urgent: UrgentStream) -> list[str]:
    """Return the events of the urgent job so far, one sentence each."""
    story: list[str] = []
    if urgent.first_token_s is not None:
        story.append(f"urgent job, streamed: first token after {urgent.first_token_s:.2f} s")
    if urgent.kill is not None:
        victim = progress.number(urgent.kill.worker_id)
        story.append(f"worker {victim} killed with SIGKILL, {urgent.kill.tokens_seen} tokens into its answer")
        if urgent.resumed_s is not None:
            passage = urgent.passages[-1]
            story.append(
                f"worker {progress.number(passage.worker_id)} went on after token {passage.resumed_from}, "
                f"{urgent.resumed_s - urgent.kill.at_s:.1f} s later"
            )
    if urgent.finished_s is not None:
        story.append(f"urgent job finished after {urgent.finished_s:.2f} s")
    return story


def _plain(progress: Progress, urgent: UrgentStream) -> str:
    """Return the urgent answer with a mark where another worker resumed it."""
    parts = [
        f"[worker {progress.number(passage.worker_id)}] {' '.join(passage.text.split())}"
        for passage in urgent.passages
    ]
    return indent("\n".join(parts), "    ")


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
