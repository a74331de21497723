"""Encodes and decodes the lines of a job's journal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError
from pydantic_core import to_json

from inferfleet.schemas.journal import (
    ENTRY_FIELD,
    AnswerHead,
    FinishedEntry,
    JournalEntry,
    QueuedEntry,
    RestartedEntry,
    RunningEntry,
    TokenChunk,
    TokensEntry,
    journal_entry,
)
from inferfleet.schemas.result import Result


@dataclass(frozen=True, slots=True)
class PendingTokens:
    """Tokens that are not in the journal yet: ``count`` of them, after ``offset`` others.

    ``head`` is written with the first tokens of an attempt.
    """

    offset: int
    chunks: tuple[TokenChunk, ...] = ()
    head: AnswerHead | None = None

    @property
    def count(self) -> int:
        """The number of tokens."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)


def parse_line(fields: dict[bytes, bytes]) -> JournalEntry:
    """Decode one line of a journal."""
    return journal_entry.validate_json(fields[ENTRY_FIELD.encode()])


def head_of(entries: Iterable[JournalEntry]) -> AnswerHead | None:
    """Return the head of the answer, from the last attempt that wrote one."""
    heads = [entry.head for entry in entries if isinstance(entry, TokensEntry) and entry.head is not None]
    return heads[-1] if heads else None


def generated(entries: Iterable[JournalEntry]) -> tuple[TokenChunk, ...]:
    """Return the chunks that count: those after the last restart."""
    return tuple(chunk for entry in _counting(entries) for chunk in entry.chunks)


def whole_answer(lines: Iterable[dict[bytes, bytes]], *, tokens: int) -> tuple[TokenChunk, ...] | None:
    """Return the chunks that count, if the journal has exactly ``tokens`` tokens without a hole.

    ``None`` if it does not: it was trimmed or lost, or has a foreign line.
    """
    try:
        counting = _counting(map(parse_line, lines))
    except (KeyError, ValidationError):
        return None
    position = 0
    for entry in counting:
        if entry.offset != position:
            return None
        position += entry.count
    return tuple(chunk for entry in counting for chunk in entry.chunks) if position == tokens else None


def _counting(entries: Iterable[JournalEntry]) -> list[TokensEntry]:
    counting: list[TokensEntry] = []
    for entry in entries:
        match entry:
            case TokensEntry():
                counting.append(entry)
            case RestartedEntry():
                counting.clear()
            case RunningEntry(resumed_from=0):
                # This attempt began at token 0, because the record of the earlier tokens was lost.
                counting.clear()
            case QueuedEntry() | RunningEntry() | FinishedEntry():
                pass
    return counting


def to_append(pending: PendingTokens, attempt: int, now: datetime) -> tuple[int, int, bytes]:
    """Return the arguments ``offset``, ``count`` and ``tokens_entry`` of every script that may add tokens."""
    if not pending.chunks:
        return pending.offset, 0, b""
    entry = TokensEntry(
        at=now, attempt=attempt, offset=pending.offset, chunks=pending.chunks, head=pending.head
    )
    return pending.offset, pending.count, encoded(entry)


def encoded(
    model: QueuedEntry | RunningEntry | RestartedEntry | TokensEntry | FinishedEntry | Result,
) -> bytes:
    """Encode a line of a journal, or a result, as JSON."""
    # Bytes, because a string would only be encoded again for Redis.
    return to_json(model, exclude_none=True, inf_nan_mode="null")
