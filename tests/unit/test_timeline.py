"""The story that a journal tells."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count

from inferfleet.producer.timeline import Event, timeline
from inferfleet.schemas import Failure, FailureCode, JobState
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

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """A second later at each look."""

    def __init__(self) -> None:
        self._seconds = count()

    @property
    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=next(self._seconds))


def told(events: list[Event]) -> list[tuple[str, str | None, int]]:
    return [(event.kind.value, event.worker_id, event.tokens) for event in events]


def tokens(at: datetime, attempt: int, number: int, offset: int = 0) -> TokensEntry:
    chunk = TokenChunk(token_ids=tuple(range(number)))
    return TokensEntry(at=at, attempt=attempt, offset=offset, chunks=(chunk,))


def test_a_lost_worker_is_told_although_no_entry_says_so() -> None:
    clock = Clock()
    journal: list[JournalEntry] = [
        QueuedEntry(at=clock.now),
        RunningEntry(at=clock.now, attempt=1, worker_id="a", model_identity="m"),
        tokens(clock.now, 1, 100),
        tokens(clock.now, 1, 20, offset=100),
        RunningEntry(at=clock.now, attempt=2, worker_id="b", resumed_from=120, model_identity="m"),
        tokens(clock.now, 2, 3, offset=120),
        FinishedEntry(at=clock.now, attempt=2, state=JobState.SUCCEEDED, tokens=123),
    ]

    events = timeline(journal)

    assert told(events) == [
        ("queued", None, 0),
        ("started", "a", 0),
        ("tokens", "a", 120),
        ("lost", "a", 0),
        ("resumed", "b", 120),
        ("tokens", "b", 3),
        ("finished", "b", 123),
    ]
    assert (events[2].at, events[2].until) == (BEGAN + timedelta(seconds=2), BEGAN + timedelta(seconds=3))
    assert events[-1].detail == "succeeded"


def test_a_job_that_is_published_again_has_lost_its_worker_only_if_it_had_one() -> None:
    clock = Clock()
    waiting: list[JournalEntry] = [
        QueuedEntry(at=clock.now),
        QueuedEntry(at=clock.now, republished=True),
        RunningEntry(at=clock.now, attempt=1, worker_id="a"),
    ]

    assert [event.kind for event in timeline(waiting)] == ["queued", "republished", "started"]
    again = QueuedEntry(at=clock.now, attempt=1, republished=True)
    assert told(timeline([*waiting, again]))[3:] == [("lost", "a", 0), ("republished", None, 0)]


def test_retries_hand_overs_and_restarts_are_told_with_their_reasons() -> None:
    clock = Clock()
    failure = Failure(code=FailureCode.ENGINE_ERROR, message="out of memory")
    another = RestartReason.ANOTHER_MODEL
    events = timeline(
        [
            QueuedEntry(at=clock.now),
            RunningEntry(at=clock.now, attempt=1, worker_id="a"),
            QueuedEntry(at=clock.now, attempt=1, reason="retry", failure=failure),
            RunningEntry(at=clock.now, attempt=2, worker_id="a"),
            tokens(clock.now, 2, 5),
            QueuedEntry(at=clock.now, attempt=2, reason="handed_over"),
            RestartedEntry(at=clock.now, attempt=3, reason=another, tokens_wasted=5),
            RunningEntry(at=clock.now, attempt=3, worker_id="b"),
            FinishedEntry(at=clock.now, attempt=3, state=JobState.FAILED, failure=failure),
        ]
    )

    assert told(events) == [
        ("queued", None, 0),
        ("started", "a", 0),
        ("retried", "a", 0),
        ("started", "a", 0),
        ("tokens", "a", 5),
        ("handed_over", "a", 0),
        ("restarted", None, 5),
        ("started", "b", 0),
        ("finished", "b", 0),
    ]
    assert events[2].detail == "engine_error: out of memory"
    assert events[6].detail == "another_model"
    assert events[8].detail == "failed: engine_error: out of memory"


def test_a_record_that_was_restored_is_no_second_start() -> None:
    clock = Clock()
    events = timeline(
        [
            RunningEntry(at=clock.now, attempt=1, worker_id="a"),
            RunningEntry(at=clock.now, attempt=1, worker_id="a", resumed_from=7),
            RestartedEntry(at=clock.now, attempt=1, reason=RestartReason.NOT_RESUMABLE, tokens_wasted=7),
            RunningEntry(at=clock.now, attempt=1, worker_id="a"),
        ]
    )

    assert [event.kind for event in events] == ["started", "restored", "restarted", "started"]
