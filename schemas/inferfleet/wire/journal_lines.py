"""Lines of a job's journal: those that are to be written, and those that were read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inferfleet.schemas.journal import (
    ENTRY_FIELD,
    FinishedEntry,
    JournalEntry,
    QueuedEntry,
    RestartedEntry,
    RunningEntry,
    TokenChunk,
    TokensEntry,
    journal_entry,
)


@dataclass(frozen=True, slots=True)
class Unflushed:
    """Tokens that the journal does not have yet: ``count`` of them, after ``offset`` others."""

    offset: int
    chunks: tuple[TokenChunk, ...] = ()

    @property
    def count(self) -> int:
        """The number of tokens."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)


def parse_line(fields: dict[bytes, bytes]) -> JournalEntry:
    """Read one line of a journal as Redis gives it."""
    return journal_entry.validate_json(fields[ENTRY_FIELD.encode()])


def generated(entries: Iterable[JournalEntry]) -> tuple[TokenChunk, ...]:
    """The chunks of tokens that count: those after the last restart."""
    chunks: list[TokenChunk] = []
    for entry in entries:
        match entry:
            case TokensEntry():
                chunks.extend(entry.chunks)
            case RestartedEntry():
                chunks.clear()
            case QueuedEntry() | RunningEntry() | FinishedEntry():
                pass
    return tuple(chunks)
