"""What a reader sees of a journal that is not the one it began with."""

from __future__ import annotations

from datetime import UTC, datetime

from inferfleet.producer.journal_view import BEGINNING, JournalLine, JournalView
from inferfleet.schemas import JobState
from inferfleet.schemas.journal import (
    FinishedEntry,
    JournalEntry,
    RestartedEntry,
    RestartReason,
    RunningEntry,
    TokenChunk,
    TokensEntry,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def running(attempt: int, model: str | None, resumed_from: int = 0) -> RunningEntry:
    return RunningEntry(
        at=NOW, attempt=attempt, worker_id="w", resumed_from=resumed_from, model_identity=model
    )


def tokens(attempt: int, offset: int, *ids: int) -> TokensEntry:
    return TokensEntry(at=NOW, attempt=attempt, offset=offset, chunks=(TokenChunk(token_ids=ids),))


def see(view: JournalView, *entries: JournalEntry, first: int = 1) -> list[JournalLine]:
    return [
        line
        for number, entry in enumerate(entries, first)
        for line in view.see(f"{number}-0".encode(), entry)
    ]


def ids(lines: list[JournalLine]) -> list[int]:
    """The tokens since the last restart."""
    seen: list[int] = []
    for line in lines:
        match line.entry:
            case RestartedEntry():
                seen.clear()
            case TokensEntry(chunks=chunks):
                seen += [token for chunk in chunks for token in chunk.token_ids]
            case _:
                pass
    return seen


def test_a_model_that_brings_its_tokens_back_after_a_restart_nobody_saw_begins_anew() -> None:
    """Redis lost the line of the restart; the worker wrote all its tokens again."""
    lines = see(
        JournalView.at(BEGINNING),
        *(running(1, "model-a"), tokens(1, 0, 1, 2, 3)),
        *(running(2, "model-b", resumed_from=2), tokens(2, 0, 7, 8), tokens(2, 2, 9, 10)),
    )
    assert ids(lines) == [7, 8, 9, 10]
    (restarted,) = [line.entry for line in lines if isinstance(line.entry, RestartedEntry)]
    assert (restarted.reason, restarted.tokens_wasted) == (RestartReason.JOURNAL_LOST, 3)


def test_a_reader_that_was_cut_off_still_knows_whose_tokens_it_has() -> None:
    cursor = see(JournalView.at(BEGINNING), running(1, "model-a"), tokens(1, 0, 1, 2, 3))[-1].id
    lines = see(JournalView.at(cursor), running(2, "model-b", resumed_from=2), tokens(2, 0, 7, 8, 9), first=5)
    assert ids(lines) == [7, 8, 9]
    assert isinstance(lines[0].entry, RestartedEntry)


def test_a_worker_of_an_older_version_that_names_no_model_is_no_other_model() -> None:
    lines = see(
        JournalView.at(BEGINNING),
        *(running(1, "model-a"), tokens(1, 0, 1, 2), running(2, None, resumed_from=2), tokens(2, 2, 3)),
    )
    assert ids(lines) == [1, 2, 3]
    assert not any(isinstance(line.entry, RestartedEntry) for line in lines)


def test_a_cursor_of_an_older_version_is_read() -> None:
    assert ids(see(JournalView.at("1-0:2"), tokens(1, 0, 1, 2), tokens(1, 2, 3), first=1)) == [3]


def test_missing_tokens_are_noticed_before_and_at_the_end() -> None:
    view = JournalView.at(BEGINNING)
    assert view.lacks(tokens(1, 1, 2))
    see(view, running(1, "model-a"), tokens(1, 0, 1, 2))
    assert not view.lacks(tokens(1, 2, 3))
    end = FinishedEntry(at=NOW, attempt=1, state=JobState.SUCCEEDED, tokens=3)
    assert view.lacks(end)
    assert not view.lacks(end.model_copy(update={"tokens": 2}))
