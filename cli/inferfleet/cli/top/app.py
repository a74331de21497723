"""The live view of ``inferfleet top``."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static
from textual.worker import Worker, WorkerCancelled
from typing_extensions import override

from inferfleet.cli.job_lines import story, summary
from inferfleet.cli.terminal import line
from inferfleet.cli.top.screens import (
    HELP,
    SCROLLBAR,
    JobId,
    JobsScreen,
    OpeningTable,
    Question,
    TextScreen,
    TextTable,
    fill,
    selected,
)
from inferfleet.cli.top.tables import (
    aborts,
    agents_table,
    ended_table,
    gates,
    jobs_table,
    outages,
    overview,
    pools_table,
    rollouts_table,
    workers_table,
)
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_listing import JobFilter
from inferfleet.schemas.errors import InferfleetError, ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.fleet_snapshot import FleetSnapshot
from inferfleet.schemas.settings import ProducerSettings

JOBS: Final = 100
"""How many jobs of a pool are listed."""

ROWS: Final = 500
"""How many rows of a table are shown."""


class PoolsTable(OpeningTable):
    """The pools."""

    BINDINGS: ClassVar[list[BindingType]] = [("p", "app.pause", "Pause/resume")]


class WorkersTable(TextTable):
    """The workers."""

    BINDINGS: ClassVar[list[BindingType]] = [("d", "app.drain", "Drain")]


class TopApp(App[InferfleetError]):
    """Shows snapshots until the user quits. Returns the error that made it end, if one did."""

    TITLE = "inferfleet top"
    CSS_PATH = "top.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "job", "Job"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    def __init__(self, settings: ProducerSettings, *, interval_s: float) -> None:
        super().__init__()
        self._settings = settings
        self._interval_s = interval_s
        self._fleet: Fleet | None = None
        self._snapshot: FleetSnapshot | None = None
        self._at_once = asyncio.Event()
        """Set when the user has changed something."""
        self._watching: Worker[None] | None = None
        self._overview = Static("connecting to Redis", id="overview")
        self._outages = Static(id="outages")
        self._outages.display = False
        self._gates = Static(id="gates")
        self.rollouts = TextTable(cursor_type="row", id="rollouts")
        self.rollouts.display = False
        self.pools = PoolsTable(cursor_type="row", id="pools")
        self.agents = TextTable(cursor_type="row", id="agents")
        self.agents.display = False
        self.workers_table = WorkersTable(cursor_type="row", id="workers")
        self.ended = OpeningTable(cursor_type="row", id="ended")

    @override
    def compose(self) -> ComposeResult:
        """Compose the main screen."""
        yield self._overview
        yield self._outages
        yield self.pools
        yield self._gates
        yield self.rollouts
        yield self.agents
        yield self.workers_table
        yield self.ended
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to watch."""
        self.pools.border_title, self.ended.border_title = "pools", "jobs that have just ended"
        self.workers_table.border_title, self.rollouts.border_title = "workers", "rollouts"
        self.agents.border_title = "runs of agents"
        self._watching = self.run_worker(self._watch())

    async def on_unmount(self) -> None:
        """Close the connections."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(WorkerCancelled):
                await self._watching.wait()

    def on_resize(self) -> None:
        """Show as many columns as there is room for."""
        self._draw()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the gates of the pool under the cursor, and why its rollout was aborted."""
        if event.data_table is self.pools:
            self._draw_gates()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open a pool or a job."""
        if event.data_table is self.pools:
            self.run_worker(self._open_pool(str(event.row_key.value)))
        elif event.data_table is self.ended:
            self._open_job(event.row_key.value)

    def action_pause(self) -> None:
        """Pause the selected pool, or resume it."""
        name = selected(self.pools)
        pools = {pool.pool: pool for pool in self._snapshot.pools} if self._snapshot else {}
        if name is None or (pool := pools.get(name)) is None:
            return
        if pool.paused_at is None:
            question = f"Pause pool {name}? Its workers finish what runs, and start nothing more."
            self._ask(question, lambda fleet: fleet.pause_pool(name))
        else:
            self._ask(f"Resume pool {name}?", lambda fleet: fleet.resume_pool(name))

    def action_drain(self) -> None:
        """Drain the selected worker."""
        if (worker_id := selected(self.workers_table)) is not None:
            question = f"Drain worker {worker_id}? It finishes or hands over its jobs, and exits."
            self._ask(question, lambda fleet: fleet.drain(worker_id))

    def action_job(self) -> None:
        """Ask for a job, and open it."""
        self.push_screen(JobId(), self._open_job)

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(TextScreen("inferfleet top", text=HELP))

    async def _watch(self) -> None:
        while True:
            try:
                async with Fleet.connect(self._settings) as self._fleet:
                    while True:
                        self._snapshot = await self._fleet.watch.snapshot()
                        self._draw()
                        await self._pause()
            except (ServiceUnreachableError, ServiceRefusedError) as error:
                self._overview.update("connecting to Redis")
                self._tell(line(f"cannot read Redis: {error}"))
            except InferfleetError as error:
                self.exit(error)
                return
            await self._pause()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._at_once.wait()
        self._at_once.clear()

    def _draw(self) -> None:
        snapshot, width = self._snapshot, self.size.width - SCROLLBAR
        if snapshot is None:
            return
        self._overview.update(Text(overview(snapshot)))
        self._tell("\n".join(outages(snapshot)))
        fill(self.pools, pools_table(snapshot, width).first(ROWS))
        fill(self.rollouts, rollouts_table(snapshot, width).first(ROWS))
        self.rollouts.display = bool(snapshot.rollouts)
        fill(self.agents, agents_table(snapshot, width).first(ROWS))
        self.agents.display = bool(snapshot.agents)
        fill(self.workers_table, workers_table(snapshot, width).first(ROWS))
        # Until somebody chooses one, the newest.
        fill(self.ended, ended_table(snapshot, width), follow=self.ended.has_focus)
        self._draw_gates()

    def _tell(self, outage: str) -> None:
        self._outages.update(Text(outage))
        self._outages.display = bool(outage)

    def _draw_gates(self) -> None:
        name = selected(self.pools)
        pools = self._snapshot.pools if self._snapshot else ()
        told = [text for pool in pools if pool.pool == name for text in gates(pool)]
        told += aborts(
            each for each in (self._snapshot.rollouts if self._snapshot else ()) if each.pool == name
        )
        if self._snapshot and not pools:
            told = ["no pool yet: start a worker, or declare one with `inferfleet pool declare`"]
        self._gates.update(Text("\n".join(told)))

    def _ask(self, question: str, work: Callable[[Fleet], Awaitable[object]]) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(self._change(work))

        self.push_screen(Question(question), answered)

    async def _change(self, work: Callable[[Fleet], Awaitable[object]]) -> None:
        with self._telling():
            if self._fleet is not None:
                await work(self._fleet)
        self._at_once.set()

    @contextmanager
    def _telling(self) -> Generator[None]:
        """Tell the user of an error."""
        try:
            yield
        except InferfleetError as error:
            self.notify(line(str(error)), severity="error", markup=False, timeout=10)

    async def _open_pool(self, pool: str) -> None:
        with self._telling():
            if self._fleet is not None:
                page = await self._fleet.jobs_page(JobFilter(pool=pool), limit=JOBS)
                title = f"pool {pool}: its {'unfinished' if page.next is None else 'most urgent'} jobs"
                self.push_screen(JobsScreen(title, partial(jobs_table, page.jobs)), self._open_job)

    def _open_job(self, job_id: str | None) -> None:
        if job_id is None:
            return

        async def read() -> tuple[str, bool]:
            try:
                return await self._told(job_id)
            except InferfleetError as error:
                return line(str(error)), False

        self.push_screen(TextScreen(f"job {line(job_id)}", read=read, interval_s=self._interval_s))

    async def _told(self, job_id: str) -> tuple[str, bool]:
        """Return the story of a job, and whether the job has ended."""
        if self._fleet is None:
            return "not connected to Redis", False
        events = await self._fleet.timeline(job_id)
        record = (await self._fleet.get_many([job_id]))[job_id]
        position = await self._fleet.position(job_id)
        told = [*([line(summary(record))] if record else []), *story(events, position)]
        return "\n".join(told), record is not None and record.state.terminal


def run_top(settings: ProducerSettings, interval_s: float) -> None:
    """Show the fleet until the user quits, or SIGTERM.

    Raises:
        ConfigurationError: A setting is invalid.

    """
    with _no_log_lines():
        error = asyncio.run(_run(TopApp(settings, interval_s=interval_s)))
    if error is not None:
        raise error


async def _run(app: TopApp) -> InferfleetError | None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.exit)
    # Without the mouse, the terminal itself can select text, so that ids can be copied.
    return await app.run_async(mouse=False)


@contextmanager
def _no_log_lines() -> Generator[None]:
    """Keep log lines off the screen: what they say of outages is shown there."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
