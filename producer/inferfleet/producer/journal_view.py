"""A reader's view of a journal: every token once, in order, even if Redis has lost the journal meanwhile.

A journal grows only at its end, so most entries pass unchanged. But if Redis lost its data, the worker writes
all tokens again, and a reader that has seen some of them must not see them twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from inferfleet.schemas.journal import (
    FinishedEntry,
    JournalEntry,
    QueuedEntry,
    RestartedEntry,
    RestartReason,
    RunningEntry,
    TokenChunk,
    TokensEntry,
)
from inferfleet.wire.redis.streams import NO_LINE

BEGINNING = "0-0:0"
"""The cursor of a reader that has seen nothing."""

_CURSOR: Final = re.compile(r"(\d{1,20})-(\d{1,20}):(\d{1,20})(?::([!-~]{1,128}))?", re.ASCII)

_MOST: Final = 2**64 - 1
"""The largest number in the id of an entry of a stream."""


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One entry of a journal. Pass its ``id`` to ``stream(after=…)`` to continue behind it."""

    id: str
    entry: JournalEntry


class JournalView:
    """Tracks what one reader has seen of one journal."""

    def __init__(self, *, line_id: bytes, tokens_seen: int, model_identity: str | None = None) -> None:
        self.line_id = line_id
        self._tokens_seen = tokens_seen
        self._model_identity = model_identity

    @classmethod
    def at(cls, cursor: str) -> Self:
        """Continue behind the line with this ``id``.

        Raises:
            ValueError: ``id`` is not the id of a line.

        """
        found = _CURSOR.fullmatch(cursor)
        numbers = [] if found is None else [int(number) for number in found.groups()[:3]]
        # Redis can read nothing behind the largest id.
        if found is None or max(numbers) > _MOST or min(numbers[:2]) == _MOST:
            raise ValueError(f"after: {cursor!r} is not the id of a journal line, like {BEGINNING!r}")
        milliseconds, sequence, tokens, model_identity = found.groups()
        return cls(
            line_id=f"{int(milliseconds)}-{int(sequence)}".encode(),
            tokens_seen=int(tokens),
            model_identity=model_identity,
        )

    def is_beyond(self, line_id: bytes) -> bool:
        """Return whether the reader has seen lines behind this last one: then it is another journal."""
        return is_before(line_id, self.line_id)

    def begin_anew(self) -> None:
        """Read from the first line, because Redis has lost the journal that the reader knows.

        The ids of the new journal may be lower. It repeats tokens that the reader has seen; skip those.
        """
        self.line_id = NO_LINE

    def is_past(self, line_id: bytes) -> bool:
        """Return whether the reader has seen this line, or one behind it."""
        return _order(line_id) <= _order(self.line_id)

    def lacks(self, entry: JournalEntry) -> bool:
        """Return whether tokens are missing between what the reader has seen and this entry."""
        match entry:
            case TokensEntry():
                return entry.offset > self._tokens_seen
            case FinishedEntry():
                return entry.tokens > self._tokens_seen
            case QueuedEntry() | RunningEntry() | RestartedEntry():
                return False

    def see(self, line_id: bytes, entry: JournalEntry) -> list[JournalLine]:
        """Take the next entry of the journal, and return what the reader should see of it."""
        if self.is_past(line_id):
            return []
        self.line_id = line_id
        return [self._line(seen) for seen in self._fresh(entry)]

    def _fresh(self, entry: JournalEntry) -> list[JournalEntry]:
        match entry:
            case TokensEntry():
                chunks = _after(entry.chunks, self._tokens_seen - entry.offset)
                count = sum(len(chunk.token_ids) for chunk in chunks)
                if not count:
                    return []
                offset = max(entry.offset, self._tokens_seen)
                self._tokens_seen = offset + count
                return [entry.model_copy(update={"offset": offset, "chunks": chunks})]
            case RestartedEntry():
                self._tokens_seen = 0
                return [entry]
            case RunningEntry() if self._tokens_seen and self._begins_again(entry):
                # Redis lost the journal, and with it the tokens to resume from, or the entry of a restart.
                self._model_identity = entry.model_identity
                wasted, self._tokens_seen = self._tokens_seen, 0
                restarted = RestartedEntry(
                    at=entry.at,
                    attempt=entry.attempt,
                    reason=RestartReason.JOURNAL_LOST,
                    tokens_wasted=wasted,
                )
                return [restarted, entry]
            case RunningEntry():
                self._model_identity = entry.model_identity
                return [entry]
            case QueuedEntry() | FinishedEntry():
                return [entry]

    def _begins_again(self, entry: RunningEntry) -> bool:
        known = entry.model_identity and self._model_identity
        return entry.resumed_from == 0 or bool(known and entry.model_identity != self._model_identity)

    def _line(self, entry: JournalEntry) -> JournalLine:
        of_model = f":{self._model_identity}" if self._model_identity else ""
        return JournalLine(f"{self.line_id.decode()}:{self._tokens_seen}{of_model}", entry)


def _after(chunks: tuple[TokenChunk, ...], seen: int) -> tuple[TokenChunk, ...]:
    """Drop the chunks that the reader has seen. A rewritten journal has the same chunks as the first one."""
    kept: list[TokenChunk] = []
    for chunk in chunks:
        if seen <= 0:
            kept.append(chunk)
        seen -= len(chunk.token_ids)
    return tuple(kept)


def is_before(one: bytes, other: bytes) -> bool:
    """Return whether a line comes before another one of the same stream."""
    return _order(one) < _order(other)


def _order(line_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = line_id.partition(b"-")
    return int(milliseconds), int(sequence)
