"""A snapshot as tables of text. Pure: others write them to the terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Final, Generic, TypeVar

from rich.cells import cell_len, set_cell_size

from inferfleet.cli.fleet_lines import duration, phase_of
from inferfleet.cli.terminal import line
from inferfleet.schemas.fleet_snapshot import AgentQueueView, FleetSnapshot, PoolView, RolloutView
from inferfleet.schemas.heartbeat import EndedJob, Heartbeat, WorkerPhase
from inferfleet.schemas.result import JobRecord

T = TypeVar("T")

UNKNOWN: Final = "-"
GAP: Final = 2
"""Between two columns."""

BAR: Final = 8
"""How wide the bar of a KV cache is."""


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column: its title, its cells, and its rank. On a narrow terminal the highest ranks give way."""

    title: str
    cell: Callable[[T], str]
    rank: int = 0
    right: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Titles, and rows of cells by key. ``right`` says which columns are numbers."""

    titles: tuple[str, ...]
    right: tuple[bool, ...]
    rows: dict[str, tuple[str, ...]]

    def first(self, number: int) -> Table:
        """Return the table with at most so many rows."""
        return replace(self, rows=dict(islice(self.rows.items(), number)))

    def lines(self) -> Generator[str]:
        """Yield the table as aligned lines, with nothing cut off."""
        rows = [self.titles, *self.rows.values()]
        widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
        for row in rows:
            cells = [
                " " * (width - cell_len(cell)) + cell if right else set_cell_size(cell, width)
                for cell, width, right in zip(row, widths, self.right, strict=True)
            ]
            yield (" " * GAP).join(cells).rstrip()


def table(
    columns: Sequence[Column[T]], items: Iterable[T], key: Callable[[T], str], width: int | None = None
) -> Table:
    """Make a table. With a ``width``, leave out the columns of the highest ranks until the others fit."""
    items = list(items)
    cells = [[line(column.cell(it)) for it in items] for column in columns]
    widths = [
        max(map(cell_len, (column.title, *its))) + GAP for column, its in zip(columns, cells, strict=True)
    ]
    kept = list(range(len(columns)))
    while width is not None and sum(widths[place] for place in kept) > width:
        last = max(kept, key=lambda place: columns[place].rank)
        if not columns[last].rank:
            break
        kept.remove(last)
    return Table(
        titles=tuple(columns[place].title for place in kept),
        right=tuple(columns[place].right for place in kept),
        rows={key(it): tuple(cells[place][row] for place in kept) for row, it in enumerate(items)},
    )


def pools_table(snapshot: FleetSnapshot, width: int | None = None) -> Table:
    """Make the table of pools, by pool name."""
    return table(POOLS, snapshot.pools, lambda pool: pool.pool, width)


def rollouts_table(snapshot: FleetSnapshot, width: int | None = None) -> Table:
    """Make the table of rollouts, by pool name."""
    columns: list[Column[RolloutView]] = [*ROLLOUTS, Column("SINCE", lambda it: _ago(snapshot, it.since), 3)]
    return table(columns, snapshot.rollouts, lambda rollout: rollout.pool, width)


def agents_table(snapshot: FleetSnapshot, width: int | None = None) -> Table:
    """Make the table of unfinished runs of agents, by queue."""
    return table(AGENTS, snapshot.agents, lambda queue: queue.queue, width)


def workers_table(snapshot: FleetSnapshot, width: int | None = None) -> Table:
    """Make the table of workers, by worker id."""
    return table(WORKERS, workers(snapshot), lambda worker: worker.worker_id, width)


def ended_table(snapshot: FleetSnapshot, width: int | None = None) -> Table:
    """Make the table of jobs that have just ended, by job id."""
    columns: list[Column[EndedJob]] = [Column("ENDED", lambda job: _ago(snapshot, job.ended_at)), *ENDED]
    return table(columns, snapshot.ended, lambda job: job.id, width)


def jobs_table(records: Iterable[JobRecord], width: int | None = None) -> Table:
    """Make the table of unfinished jobs, by job id."""
    return table(JOBS, records, lambda record: record.id, width)


def workers(snapshot: FleetSnapshot) -> list[Heartbeat]:
    """Return the workers of all pools."""
    return [worker for pool in snapshot.pools for worker in pool.workers]


def overview(snapshot: FleetSnapshot) -> str:
    """Return the fleet in one line."""
    its = workers(snapshot)
    ready = sum(worker.phase is WorkerPhase.READY for worker in its)
    unfinished = sum(sum(pool.unfinished.values()) for pool in snapshot.pools)
    jobs = sum(pool.finished_per_s for pool in snapshot.pools)
    tokens = sum(pool.tokens_per_s for pool in snapshot.pools)
    return (
        f"{snapshot.at:%H:%M:%S} UTC  {len(snapshot.pools)} pools  {ready}/{len(its)} workers  "
        f"{unfinished:,} jobs  {jobs:,.1f} jobs/s  {tokens:,.0f} tokens/s"
    )


def outages(snapshot: FleetSnapshot) -> Generator[str]:
    """Yield a line for each service that does not answer, which says what the tables lack."""
    for service, why in snapshot.unreachable.items():
        meaning = (
            f"so this is the fleet at {snapshot.at:%H:%M:%S} UTC"
            if service == "Redis"
            else "so the lengths of queues are unknown"
        )
        yield line(f"cannot read {service}, {meaning}: {why}")


def gates(pool: PoolView) -> Generator[str]:
    """Yield a line for each closed gate of a pool."""
    for gate in pool.gates:
        yield line(f"{pool.pool}: {gate.detail}")


def aborts(rollouts: Iterable[RolloutView]) -> Generator[str]:
    """Yield a line for each rollout that was aborted, which says why."""
    for rollout in rollouts:
        if rollout.reason:
            yield line(f"{rollout.pool}: its rollout to {rollout.to} is {rollout.phase}: {rollout.reason}")


def _ago(snapshot: FleetSnapshot, then: datetime) -> str:
    return f"{duration(max(0.0, (snapshot.at - then).total_seconds()))} ago"


def _rate(value: float) -> str:
    return f"{value:,.1f}"


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _runs(count: Callable[[AgentQueueView], int]) -> Callable[[AgentQueueView], str]:
    return lambda it: f"{'~' if it.sampled else ''}{count(it):,}"


def _duration(value: float | None) -> str:
    return UNKNOWN if value is None else duration(value)


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def _kv(worker: Heartbeat) -> str:
    full = round(worker.kv_cache_usage * BAR)
    return f"{worker.kv_cache_usage:.0%} {'█' * full}{'░' * (BAR - full)}"


def _ready(pool: PoolView) -> str:
    ready = sum(worker.phase is WorkerPhase.READY for worker in pool.workers)
    return f"{ready}/{len(pool.workers)}"


POOLS: Final[tuple[Column[PoolView], ...]] = (
    Column("POOL", lambda it: it.pool),
    Column("JOBS", lambda it: _count(sum(it.unfinished.values())), right=True),
    Column("RUNNING", lambda it: _count(sum(w.running for w in it.workers)), 4, right=True),
    Column("QUEUE", lambda it: _count(it.ready), 8, right=True),
    Column("OLDEST", lambda it: _duration(it.oldest_waiting_s), 2, right=True),
    Column("WAITED", lambda it: _duration(it.queue_wait_s), 6, right=True),
    Column("JOBS/S", lambda it: _rate(it.finished_per_s), 3, right=True),
    Column("TOKENS/S", lambda it: _rate(it.tokens_per_s), 7, right=True),
    Column("BACKLOG", lambda it: _duration(it.backlog_s), 1, right=True),
    Column("READY", _ready, 5, right=True),
    Column("DEAD", lambda it: _count(it.dead_letters), 9, right=True),
    Column("CLOSED GATES", lambda it: ", ".join(gate.reason.replace("_", " ") for gate in it.gates)),
    Column("BY PRIORITY", lambda it: " ".join(f"{level}:{n:,}" for level, n in it.unfinished.items()), 10),
)

ROLLOUTS: Final[tuple[Column[RolloutView], ...]] = (
    Column("POOL", lambda it: it.pool),
    Column("CANARY", lambda it: it.to, 4),
    Column("ROLLOUT", lambda it: it.phase),
    Column("STEP", lambda it: f"{it.step}/{it.steps}", 2, right=True),
    Column("WEIGHT", lambda it: f"{it.weight:g}%", right=True),
    Column("ERRORS", lambda it: _share(it.stable_error_rate), 5, right=True),
    Column("CANARY ERRORS", lambda it: _share(it.canary_error_rate), 1, right=True),
    Column(
        "TTFT RATIO", lambda it: UNKNOWN if it.ttft_ratio is None else f"{it.ttft_ratio:.2f}", 1, right=True
    ),
)

AGENTS: Final[tuple[Column[AgentQueueView], ...]] = (
    Column("QUEUE OF RUNS", lambda it: it.queue),
    Column("RUNS", lambda it: _count(it.unfinished), right=True),
    Column("QUEUED", _runs(lambda it: it.queued), 2, right=True),
    Column("RUNNING", _runs(lambda it: it.running), 3, right=True),
    Column("FOR PEOPLE", _runs(lambda it: it.waiting_for_people), right=True),
    Column("FOR CHILDREN", _runs(lambda it: it.waiting_for_children), 4, right=True),
    Column("OLDEST", lambda it: _duration(it.oldest_s), 1, right=True),
)

WORKERS: Final[tuple[Column[Heartbeat], ...]] = (
    Column("WORKER", lambda it: it.worker_id),
    Column("POOL", lambda it: it.pool, 5),
    Column("PHASE", phase_of),
    Column("RUNNING", lambda it: _count(it.running), 1, right=True),
    Column("WAITING", lambda it: _count(it.waiting + it.held), 3, right=True),
    Column("KV CACHE", _kv, 2, right=True),
    Column("JOBS/S", lambda it: _rate(it.finished_per_s), 6, right=True),
    Column("TOKENS/S", lambda it: _rate(it.tokens_per_s), 1, right=True),
    Column("MODEL", lambda it: it.model, 4),
    Column("IDENTITY", lambda it: it.model_identity, 8),
    Column("VERSION", lambda it: it.version, 7),
)

ENDED: Final[tuple[Column[EndedJob], ...]] = (
    Column("JOB", lambda it: it.id),
    Column("STATE", lambda it: it.state if it.code is None else f"{it.state}: {it.code}"),
    Column("POOL", lambda it: it.pool, 1),
    Column("WAITED", lambda it: _duration(it.queue_wait_s), 2, right=True),
    Column("TOTAL", lambda it: _duration(it.total_s), 3, right=True),
    Column("TOKENS", lambda it: _count(it.tokens), 4, right=True),
    Column("PRIORITY", lambda it: str(it.priority), 6, right=True),
    Column("WORKER", lambda it: it.worker_id, 5),
    Column("TENANT", lambda it: it.tenant, 7),
)

JOBS: Final[tuple[Column[JobRecord], ...]] = (
    Column("JOB", lambda it: it.id),
    Column("STATE", lambda it: it.state),
    Column("PRIORITY", lambda it: str(it.priority), right=True),
    Column("SUBMITTED", lambda it: f"{it.submitted_at:%m-%d %H:%M:%S}" if it.submitted_at else UNKNOWN, 1),
    Column("ATTEMPT", lambda it: _count(it.attempt), 3, right=True),
    Column("TOKENS", lambda it: _count(it.tokens), 4, right=True),
    Column("WORKER", lambda it: it.worker_id or "", 2),
    Column("TENANT", lambda it: it.tenant, 5),
    Column("SESSION", lambda it: it.session_id or "", 6),
)
