"""A job and its story as lines for a person."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime

from inferfleet.cli.fleet_lines import duration
from inferfleet.cli.terminal import line, shown_id
from inferfleet.producer.positions import Position
from inferfleet.producer.timeline import Event
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.result import JobRecord


def summary(record: JobRecord) -> str:
    """Return a line about a job."""
    submitted = f"{record.submitted_at:%Y-%m-%d %H:%M:%S}" if record.submitted_at else "-"
    more = [f"attempt {record.attempt} on {record.worker_id}"] if record.attempt else []
    more += [f"{record.tokens} tokens"] if record.tokens else []
    more += [f"session {shown_id(record.session_id)}"] if record.session_id else []
    return "  ".join(
        (shown_id(record.id), submitted, record.pool, f"priority {record.priority}", record.state, *more)
    )


def story(events: Sequence[Event], position: Position) -> Generator[str]:
    """Yield a line for each event of a job, why it waits, and what is ahead of it."""
    for event in events:
        yield _told(event, events[0].at)
    for wait in position.waits:
        yield f"waits: {line(wait.detail)}"
    if position.ahead is not None:
        yield _ahead(position, position.ahead)


def _told(event: Event, began: datetime) -> str:
    after_s = (event.at - began).total_seconds()
    return f"{event.at:%Y-%m-%d %H:%M:%S.%f}"[:-3] + f"  {after_s:+10.3f} s  {line(event.words)}"


def _ahead(position: Position, jobs: int) -> str:
    told = f"ahead: {count_of(jobs, 'unfinished job')}"
    if position.finished_per_s:
        told += f"; {position.finished_per_s:.2g} jobs per second have ended lately"
    if position.starts_in_s is not None:
        told += f", so it may start in {duration(position.starts_in_s)}"
    return told
