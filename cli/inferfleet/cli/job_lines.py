"""A job and its story as lines for a person."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime

from inferfleet.cli.fleet_lines import duration
from inferfleet.cli.terminal import line, shown_id
from inferfleet.producer.positions import Position
from inferfleet.producer.timeline import Event, EventKind
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
        yield _ahead(position)


def _told(event: Event, began: datetime) -> str:
    after_s = (event.at - began).total_seconds()
    return f"{event.at:%Y-%m-%d %H:%M:%S.%f}"[:-3] + f"  {after_s:+10.3f} s  {line(_words(event))}"


def _words(event: Event) -> str:
    """Return an event as words for a person."""
    on = f" on {event.worker_id}" if event.worker_id else ""
    match event.kind:
        case EventKind.QUEUED:
            return "queued"
        case EventKind.STARTED:
            return f"attempt {event.attempt} started{on}"
        case EventKind.RESUMED:
            return f"attempt {event.attempt} resumed{on} after token {event.tokens}"
        case EventKind.TOKENS:
            lasted_s = ((event.until or event.at) - event.at).total_seconds()
            return f"{event.tokens} tokens in {lasted_s:.3f} s"
        case EventKind.RETRIED:
            return f"attempt {event.attempt} failed{on}: {event.detail or 'no reason was recorded'}"
        case EventKind.HANDED_OVER:
            return f"handed over by {event.worker_id or 'its worker'}"
        case EventKind.LOST:
            return f"lost its worker {event.worker_id}, which gave no sign of life any more"
        case EventKind.REPUBLISHED:
            return "published again, because its message was lost"
        case EventKind.RESTARTED:
            return f"answer restarted ({event.detail}); {event.tokens} tokens wasted"
        case EventKind.RESTORED:
            return f"restored{on}, because Redis had lost the record"
        case EventKind.FINISHED:
            return f"{event.detail}, with {event.tokens} tokens"


def _ahead(position: Position) -> str:
    told = f"ahead: {position.ahead:,} unfinished jobs"
    if position.finished_per_s:
        told += f"; {position.finished_per_s:.2g} jobs per second have ended lately"
    if position.starts_in_s is not None:
        told += f", so it may start in {duration(position.starts_in_s)}"
    return told
