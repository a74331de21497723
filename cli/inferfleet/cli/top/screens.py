"""What opens above the live view: a pool's jobs, a job, a question, the help. Escape closes each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Input, Static
from typing_extensions import override

from inferfleet.cli.top.tables import Table

TextTable = DataTable[Text]

SCROLLBAR: Final = 2
"""How wide the scrollbar of a table is."""

HELP: Final = """\
Tab, Shift+Tab  the next table, the one before
Up, Down        another row
Left, Right     scroll a table that is too wide
Enter           on a pool: its unfinished jobs, the 100 most urgent
                on a job: what has happened to it, and why it waits
p               pause the selected pool, or resume it
d               drain the selected worker: it finishes or hands over its jobs
j               open a job by its id
q, Ctrl+C       quit

JOBS            unfinished jobs, including those that run
QUEUE           messages in the queue
OLDEST          how long the oldest job that does not run has waited
WAITED          median wait of jobs that ended in the last minute
JOBS/S          jobs that ended per second, in the last minute
TOKENS/S        tokens generated per second, in the last ten seconds
BACKLOG         how long the unfinished jobs last at that rate of jobs
READY           ready workers / all workers
DEAD            dead letters
CLOSED GATES    why jobs do not start, or are not accepted
BY PRIORITY     unfinished jobs by priority, 9 is the most urgent
WEIGHT          percent of the pool's jobs that go to the canary pool
ERRORS          share of failed attempts since the step began
TTFT RATIO      median time to first token, canary pool : pool
FOR PEOPLE      runs of agents that wait for an answer to a question
FOR CHILDREN    runs of agents that wait for runs that they have started
~               an estimate: more than 500 runs

A wider terminal shows more columns.

Jobs that have just ended are those that heartbeats name: of each worker
the last 5 that succeeded, and the last 5 that did not. Jobs that ended
without a worker are not among them.
"""


def fill(widget: TextTable, table: Table, *, follow: bool = True) -> None:
    """Show a table. The cursor follows its row, or stays where it is."""
    before = selected(widget)
    row, scrolled = widget.cursor_row, widget.scroll_offset
    widget.clear(columns=True)
    for title, right in zip(table.titles, table.right, strict=True):
        widget.add_column(_cell(title, right=right), key=title)
    for key, cells in table.rows.items():
        shown = [_cell(cell, right=right) for cell, right in zip(cells, table.right, strict=True)]
        widget.add_row(*shown, key=key)
    keys = list(table.rows)
    place = keys.index(before) if follow and before in table.rows else min(row, max(0, len(keys) - 1))
    widget.move_cursor(row=place, animate=False, scroll=False)
    widget.scroll_to(scrolled.x, scrolled.y, animate=False)


def selected(widget: TextTable) -> str | None:
    """Return the key of the row under the cursor; ``None`` without one."""
    if not widget.is_valid_row_index(widget.cursor_row):
        return None
    return widget.coordinate_to_cell_key(widget.cursor_coordinate).row_key.value


def _cell(text: str, *, right: bool) -> Text:
    return Text(text, justify="right" if right else "left", no_wrap=True)


class TextScreen(Screen[None]):
    """Shows text. ``read`` is called again and again until it says that the text will not change."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss", "Back")]

    def __init__(
        self,
        title: str,
        *,
        text: str = "",
        read: Callable[[], Awaitable[tuple[str, bool]]] | None = None,
        interval_s: float = 1.0,
    ) -> None:
        super().__init__()
        self._title = title
        self._text = Static(Text(text), id="text")
        self._read = read
        self._interval_s = interval_s

    @override
    def compose(self) -> ComposeResult:
        """Compose the screen."""
        yield Static(Text(self._title), classes="title")
        with VerticalScroll():
            yield self._text
        yield Footer(show_command_palette=False)

    async def on_mount(self) -> None:
        """Read the text at once."""
        if self._read is not None:
            self._again = self.set_interval(self._interval_s, self._refresh)
            await self._refresh()

    async def _refresh(self) -> None:
        if self._read is not None:
            text, ended = await self._read()
            self._text.update(Text(text))
            if ended:
                self._again.stop()


class JobsScreen(Screen[str]):
    """Shows jobs. Returns the id of the one that is opened."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss", "Back")]

    def __init__(self, title: str, jobs: Callable[[int], Table]) -> None:
        super().__init__()
        self._title = title
        self._jobs = jobs
        self.table = OpeningTable(cursor_type="row")

    @override
    def compose(self) -> ComposeResult:
        """Compose the screen."""
        yield Static(Text(self._title), classes="title")
        yield self.table
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Show the jobs."""
        fill(self.table, self._jobs(self.app.size.width - SCROLLBAR))

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the selected job."""
        event.stop()
        self.dismiss(event.row_key.value)


class Question(ModalScreen[bool]):
    """Asks before something is done. Only ``y`` is a yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "Yes"),
        ("n,escape", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    @override
    def compose(self) -> ComposeResult:
        """Compose the screen."""
        with Vertical(classes="box"):
            yield Static(Text(self._question))
            yield Static(Text("y  yes      n  no", style="bold"))

    def action_answer(self, yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(yes)


class JobId(ModalScreen[str]):
    """Asks for the id of a job."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss", "Back")]

    @override
    def compose(self) -> ComposeResult:
        """Compose the screen."""
        with Vertical(classes="box"):
            yield Static(Text("Open a job"))
            yield Input(placeholder="the job's id", select_on_focus=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Close with the id."""
        self.dismiss(event.value.strip() or None)


class OpeningTable(TextTable):
    """A table whose rows can be opened."""

    BINDINGS: ClassVar[list[BindingType]] = [("enter", "select_cursor", "Open")]
