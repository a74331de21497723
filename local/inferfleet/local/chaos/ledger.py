"""The ledger of a producer process: its accepted jobs, and everything that it saw of their ends.

Each event is one JSON line, written in one system call. A kill can truncate the line that is being written,
and loses no other. An accepted job is on disk before the producer does anything else with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, TypeAdapter

from inferfleet.schemas import Job, JournalEntry, Result
from inferfleet.schemas.job import JobId
from inferfleet.schemas.wire_model import WireModel


class Intent(WireModel):
    """A submit is about to begin. A producer that finds this without an ``Accepted`` submits again."""

    event: Literal["intent"] = "intent"
    number: int


class Accepted(WireModel):
    """``submit`` returned this job."""

    event: Literal["accepted"] = "accepted"
    number: int
    job: Job


class Seen(WireModel):
    """A waiting client received this result."""

    event: Literal["seen"] = "seen"
    result: Result


class Streamed(WireModel):
    """A stream reader received this entry. ``cursor`` is where it continues after an interruption."""

    event: Literal["streamed"] = "streamed"
    job_id: JobId
    cursor: str
    entry: JournalEntry


class CancelAsked(WireModel):
    """The client asked to cancel the job."""

    event: Literal["cancel_asked"] = "cancel_asked"
    job_id: JobId


Event = Annotated[Intent | Accepted | Seen | Streamed | CancelAsked, Field(discriminator="event")]

_event: TypeAdapter[Event] = TypeAdapter(Event)


class Ledger:
    """An append-only file of events, for one writing process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        # Ends a line that a kill has truncated, if there is one.
        os.write(self._file, b"\n")

    def write(self, event: Event) -> None:
        """Append an event, which survives a kill of this process."""
        os.write(self._file, event.model_dump_json(exclude_none=True).encode() + b"\n")

    def sync(self) -> None:
        """Force the written events to disk, so that they survive a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_ledger(path: Path) -> Iterator[Event]:
    """Read all events, in order."""
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                if (event := whole_line(line)) is not None:
                    yield _event.validate_python(event)


def whole_line(line: bytes) -> dict[str, Any] | None:
    """Parse one line; ``None`` if it is empty, was truncated by a kill, or is being written."""
    try:
        return orjson.loads(line) if line.endswith(b"\n") else None
    except orjson.JSONDecodeError:
        return None


class LedgerTail:
    """Follows a ledger as it grows: which jobs were accepted, and of which the end was seen."""

    def __init__(self, path: Path) -> None:
        self.numbers: set[int] = set()
        self.accepted: set[str] = set()
        self.ended: set[str] = set()
        self._path = path
        self._offset = 0

    def read(self) -> None:
        """Read what was written since the last time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as ledger:
            ledger.seek(self._offset)
            text = ledger.read()
        whole = text.rfind(b"\n") + 1
        self._offset += whole
        for line in text[:whole].splitlines(keepends=True):
            if line.startswith((b'{"event":"accepted"', b'{"event":"seen"')):
                match whole_line(line):
                    case {"event": "accepted", "number": int(number), "job": {"id": str(job_id)}}:
                        self.numbers.add(number)
                        self.accepted.add(job_id)
                    case {"event": "seen", "result": {"job_id": str(job_id)}}:
                        self.ended.add(job_id)
                    case _:
                        pass
