"""The checker finds each violation in a history that has it, and none in one that has not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from inferfleet.local.chaos.checker import Violation, check
from inferfleet.local.chaos.history import History, JobHistory
from inferfleet.local.chaos.waste import Waste, measure
from inferfleet.local.chaos.workload import KIND, Kind, text_of
from inferfleet.schemas import Failure, FailureCode, Job, JobState, JournalEntry, Result, Usage
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import (
    FinishedEntry,
    QueuedEntry,
    RestartedEntry,
    RestartReason,
    RunningEntry,
    TokenChunk,
    TokensEntry,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TOKENS = 20
JOB = Job(
    body={
        "messages": [{"role": "user", "content": "check"}],
        "max_tokens": TOKENS,
        "simulated": {"tokens": TOKENS},
    }
)
STREAMED = JOB.model_copy(update={"stream": True})
SUCCEEDED = Result(
    job_id=JOB.id,
    state=JobState.SUCCEEDED,
    response={"choices": [{"message": {"role": "assistant", "content": text_of(JOB)}}]},
    attempts=2,
)
FAILED = Result(
    job_id=JOB.id, state=JobState.FAILED, error=Failure(code=FailureCode.ENGINE_ERROR, message="broke")
)


def running(attempt: int, *, resumed_from: int = 0, after_s: float = 0.0) -> RunningEntry:
    return RunningEntry(
        at=NOW + timedelta(seconds=after_s),
        attempt=attempt,
        worker_id=f"worker-{attempt}",
        resumed_from=resumed_from,
    )


def tokens(attempt: int, offset: int, count: int, *, text: str = "", after_s: float = 0.0) -> TokensEntry:
    chunk = TokenChunk(token_ids=tuple(range(count)), text=text)
    return TokensEntry(at=NOW + timedelta(seconds=after_s), attempt=attempt, offset=offset, chunks=(chunk,))


def finished(attempt: int, state: JobState = JobState.SUCCEEDED) -> FinishedEntry:
    return FinishedEntry(at=NOW, attempt=attempt, state=state)


JOURNAL: tuple[JournalEntry, ...] = (
    QueuedEntry(at=NOW),
    running(1),
    tokens(1, 0, 8),
    running(2, resumed_from=8),
    tokens(2, 8, 12, text=text_of(JOB)),
    finished(2),
)
"""A job whose first worker died, and whose second continued."""

GOOD = JobHistory(job=JOB, journal=JOURNAL, stored=SUCCEEDED, seen=(SUCCEEDED,), streams=(JOURNAL,))


def without(*positions: int) -> tuple[JournalEntry, ...]:
    return tuple(entry for position, entry in enumerate(JOURNAL) if position not in positions)


def kinds(*jobs: JobHistory, **rest: Any) -> set[Violation]:
    return {finding.violation for finding in check(History(jobs=jobs, **rest)).findings}


def test_a_history_in_which_all_went_well_has_no_violation() -> None:
    assert kinds(GOOD) == set()


def of(entry: RunningEntry, model_identity: str) -> RunningEntry:
    return entry.model_copy(update={"model_identity": model_identity})


MIXED = (
    QueuedEntry(at=NOW),
    of(running(1), "model-a"),
    tokens(1, 0, 8),
    of(running(2, resumed_from=8), "model-b"),
    tokens(2, 8, 12, text=text_of(JOB)),
    finished(2),
)
NAMES_B = SUCCEEDED.model_copy(update={"model_identity": "model-b"})


def test_an_answer_that_another_model_began_again_is_no_violation() -> None:
    restarted = RestartedEntry(at=NOW, attempt=2, reason=RestartReason.ANOTHER_MODEL, tokens_wasted=8)
    journal = (
        *MIXED[:3],
        restarted,
        of(running(2), "model-b"),
        tokens(2, 0, TOKENS, text=text_of(JOB)),
        finished(2),
    )
    assert kinds(replace(GOOD, journal=journal, streams=(journal,), stored=NAMES_B, seen=(NAMES_B,))) == set()


@pytest.mark.parametrize(
    ("history", "violation"),
    [
        pytest.param(
            replace(GOOD, journal=MIXED, stored=NAMES_B, seen=(NAMES_B,)),
            Violation.TWO_MODELS_IN_ONE_ANSWER,
            id="another model goes on",
        ),
        pytest.param(
            replace(GOOD, streams=(MIXED,)),
            Violation.TWO_MODELS_IN_ONE_ANSWER,
            id="a reader sees two models in one answer",
        ),
        pytest.param(
            replace(
                GOOD,
                journal=(of(running(1), "model-a"), tokens(1, 0, TOKENS, text=text_of(JOB)), finished(1)),
                stored=NAMES_B,
                seen=(NAMES_B,),
            ),
            Violation.TWO_MODELS_IN_ONE_ANSWER,
            id="the result names another model",
        ),
        pytest.param(
            replace(GOOD, journal=without(5), stored=None, seen=(), streams=()),
            Violation.NO_TERMINAL_RESULT,
            id="accepted and never ended",
        ),
        pytest.param(
            replace(GOOD, journal=(), stored=None, seen=(), streams=()),
            Violation.NO_TERMINAL_RESULT,
            id="accepted and forgotten",
        ),
        pytest.param(
            replace(GOOD, journal=(*JOURNAL, finished(2))),
            Violation.TWO_TERMINAL_RESULTS,
            id="two ends in the journal",
        ),
        pytest.param(
            replace(GOOD, seen=(SUCCEEDED.model_copy(update={"attempts": 1}),)),
            Violation.TWO_TERMINAL_RESULTS,
            id="a client was given another result than the stored one",
        ),
        pytest.param(
            replace(GOOD, seen=(SUCCEEDED, SUCCEEDED.model_copy(update={"worker_id": "other"}))),
            Violation.TWO_TERMINAL_RESULTS,
            id="two clients were given different results",
        ),
        pytest.param(
            replace(GOOD, journal=(*without(5), finished(2, JobState.CANCELLED))),
            Violation.TWO_TERMINAL_RESULTS,
            id="the journal ends otherwise than the result",
        ),
        pytest.param(
            JobHistory(job=JOB, journal=(finished(1, JobState.FAILED),), stored=FAILED),
            Violation.WRONG_END,
            id="an innocent job failed",
        ),
        pytest.param(
            JobHistory(
                job=JOB.model_copy(update={"metadata": {KIND: Kind.CANCELLED}}),
                journal=(finished(1, JobState.CANCELLED),),
                stored=SUCCEEDED.model_copy(update={"state": JobState.CANCELLED}),
            ),
            Violation.WRONG_END,
            id="cancelled although nobody had asked",
        ),
        pytest.param(
            replace(
                GOOD,
                stored=SUCCEEDED.model_copy(update={"response": {"choices": [{"text": "something else"}]}}),
                seen=(),
            ),
            Violation.WRONG_TEXT,
            id="another text than the uninterrupted one",
        ),
        pytest.param(
            replace(
                GOOD,
                streams=((*without(4, 5), tokens(2, 8, 12, text=text_of(JOB) + "!"), finished(2)),),
            ),
            Violation.WRONG_TEXT,
            id="a reader was given another text",
        ),
        pytest.param(
            replace(GOOD, streams=((*without(2, 4, 5), tokens(2, 8, 12, text=text_of(JOB)), finished(2)),)),
            Violation.STREAM_GAP,
            id="tokens are missing from a stream",
        ),
        pytest.param(
            replace(GOOD, journal=without(2)), Violation.STREAM_GAP, id="tokens are missing from the journal"
        ),
        pytest.param(
            replace(GOOD, streams=((*without(4, 5), tokens(1, 0, 8), *JOURNAL[4:]),)),
            Violation.STREAM_REPEAT,
            id="a reader was given tokens twice",
        ),
        pytest.param(
            replace(GOOD, journal=(*without(4, 5), tokens(2, 6, 14), finished(2))),
            Violation.STREAM_REPEAT,
            id="the journal has tokens twice",
        ),
        pytest.param(
            replace(GOOD, job=STREAMED, streams=(without(5),)),
            Violation.STREAM_WITHOUT_END,
            id="a reader was not told of the end",
        ),
        pytest.param(
            replace(GOOD, job=STREAMED, streams=()),
            Violation.STREAM_WITHOUT_END,
            id="a reader was told nothing",
        ),
        pytest.param(
            replace(GOOD, journal=(*without(4, 5), tokens(1, 8, 12), finished(2))),
            Violation.WRITE_AFTER_FENCE,
            id="an older attempt wrote after a newer one",
        ),
    ],
)
def test_a_broken_promise_to_a_job_is_found(history: JobHistory, violation: Violation) -> None:
    unfinished = history.stored is None and history.journal
    index = {history.job.id: JobState.RUNNING} if unfinished else {}
    assert kinds(history, index=index) == {violation}


@pytest.mark.parametrize("state", [None, JobState.SUCCEEDED], ids=["unknown", "ended"])
def test_a_job_that_is_not_unfinished_is_found_in_the_index(state: JobState | None) -> None:
    assert kinds(GOOD, index={JOB.id: state}) == {Violation.INDEX_DISAGREES}


def test_an_unfinished_job_that_is_not_in_the_index_is_found() -> None:
    # Its client has seen a result that Redis has forgotten.
    history = replace(GOOD, journal=without(5), stored=None, streams=(), lost_result=True)
    assert kinds(history) == {Violation.INDEX_DISAGREES}


def test_a_message_that_nobody_settled_is_found() -> None:
    assert kinds(GOOD, leftover={"queue": 1}) == {Violation.LEFTOVER_MESSAGE}
    assert kinds(GOOD, leftover={"queue": 0}) == set()


def test_an_innocent_job_among_the_dead_letters_is_found_and_a_hopeless_one_is_not() -> None:
    assert kinds(GOOD, dead_letters=(JOB.id,)) == {Violation.UNEXPECTED_DEAD_LETTER}


def test_two_jobs_of_one_key_are_found_unless_redis_lost_the_key() -> None:
    one, other = (
        replace(GOOD, job=JOB.model_copy(update={"idempotency_key": "order-17", "id": job_id}))
        for job_id in (JOB.id, new_job_id())
    )
    assert kinds(one, other) == {Violation.TWO_JOBS_FOR_ONE_KEY}
    assert kinds(one, other, keys_lost=True) == set()


def test_garbage_that_lies_nowhere_is_found() -> None:
    assert kinds(GOOD, garbage_lost=("garbage 3",)) == {Violation.GARBAGE_LOST}
    hopeless = JOB.model_copy(update={"metadata": {KIND: Kind.DOOMED}})
    ended = JobHistory(job=hopeless, journal=(finished(1, JobState.FAILED),), stored=FAILED)
    assert kinds(ended, dead_letters=(JOB.id,)) == set()


def test_a_restart_is_neither_a_gap_nor_a_repeat() -> None:
    journal = (
        *JOURNAL[:3],
        RestartedEntry(at=NOW, attempt=2, reason="not_resumable", tokens_wasted=8),
        running(2),
        tokens(2, 0, TOKENS, text=text_of(JOB)),
        finished(2),
    )
    assert kinds(replace(GOOD, journal=journal, streams=(journal,))) == set()


def test_only_a_result_that_redis_lost_is_excused() -> None:
    gone = replace(GOOD, journal=(), stored=None, seen=(), streams=())
    assert kinds(gone) == {Violation.NO_TERMINAL_RESULT}
    verdict = check(History(jobs=(replace(gone, lost_result=True),)))
    assert (verdict.findings, verdict.excused) == ((), 1)
    # One that Redis still has, but not its end, must end again.
    unfinished = replace(gone, lost_result=True, journal=without(5))
    assert kinds(unfinished, index={JOB.id: JobState.RUNNING}) == {Violation.NO_TERMINAL_RESULT}
    # One that had been read stays read.
    assert check(History(jobs=(replace(gone, lost_result=True, seen=(SUCCEEDED,)),))).excused == 0
    # And its stream reader cannot be told of its end any more.
    assert kinds(replace(gone, job=STREAMED, lost_result=True, seen=(SUCCEEDED,))) == set()


def waste_of(job: JobHistory, folder: Path, *, generated: str) -> Waste:
    log = folder / "tokens.log"
    log.write_text(generated)
    return measure(History(jobs=(job,)), log)


def test_what_is_not_in_the_journal_was_wasted(tmp_path: Path) -> None:
    # Steps of two engines, of which one generated three more tokens than its worker wrote down
    assert waste_of(GOOD, tmp_path, generated=f"8\n3\n{TOKENS - 8}\n") == Waste(TOKENS + 3, 3)


def test_tokens_before_a_restart_are_wasted_and_those_before_a_hand_over_are_not(tmp_path: Path) -> None:
    handed_over = QueuedEntry(at=NOW, attempt=1, reason="handed_over")
    moved = replace(GOOD, journal=(*JOURNAL[:3], handed_over, *JOURNAL[3:]))
    assert waste_of(moved, tmp_path, generated=f"{TOKENS}\n").wasted == 0
    restarted = RestartedEntry(at=NOW, attempt=2, reason="not_resumable", tokens_wasted=8)
    again = (*JOURNAL[:3], handed_over, restarted, running(2), tokens(2, 0, TOKENS), finished(2))
    assert waste_of(replace(GOOD, journal=again), tmp_path, generated=f"8\n{TOKENS}\n").wasted == 8
    # One that restarts and fails before its first token has kept nothing.
    lost = replace(GOOD, journal=(*JOURNAL[:3], restarted, finished(2, JobState.FAILED)))
    assert waste_of(lost, tmp_path, generated="8\n").wasted == 8


def test_an_answer_that_redis_forgot_was_not_wasted_if_somebody_has_it(tmp_path: Path) -> None:
    before = replace(GOOD, journal=(), earlier_journal=JOURNAL, seen=())
    assert waste_of(before, tmp_path, generated=f"{TOKENS}\n").wasted == 0
    read = SUCCEEDED.model_copy(update={"usage": Usage(completion_tokens=TOKENS)})
    gone = replace(GOOD, journal=(), stored=None, seen=(read,), streams=())
    assert waste_of(gone, tmp_path, generated=f"{TOKENS}\n").wasted == 0
    assert waste_of(replace(gone, seen=()), tmp_path, generated=f"{TOKENS}\n").wasted == TOKENS
