"""Finds violations in a history. Pure: it does no input or output.

It checks these promises: an accepted job reaches exactly one terminal result; its text is that of an
uninterrupted run of one model; its readers see every token once, in order; an attempt that has lost its job
writes nothing more; an ended job leaves no message behind; the index of unfinished jobs has no others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from inferfleet.local.chaos.history import History, JobHistory
from inferfleet.local.chaos.workload import may_be_dead_letter, possible_ends, text_of
from inferfleet.schemas import JobState, JournalEntry, Result
from inferfleet.schemas.journal import FinishedEntry, RestartedEntry, RunningEntry, TokensEntry


class Violation(StrEnum):
    """The ways to break a promise."""

    NO_TERMINAL_RESULT = "no_terminal_result"
    TWO_TERMINAL_RESULTS = "two_terminal_results"
    WRONG_END = "wrong_end"
    WRONG_TEXT = "wrong_text"
    TWO_MODELS_IN_ONE_ANSWER = "two_models_in_one_answer"
    STREAM_GAP = "stream_gap"
    STREAM_REPEAT = "stream_repeat"
    STREAM_WITHOUT_END = "stream_without_end"
    WRITE_AFTER_FENCE = "write_after_fence"
    LEFTOVER_MESSAGE = "leftover_message"
    UNEXPECTED_DEAD_LETTER = "unexpected_dead_letter"
    TWO_JOBS_FOR_ONE_KEY = "two_jobs_for_one_key"
    GARBAGE_LOST = "garbage_lost"
    INDEX_DISAGREES = "index_disagrees"
    WORKER_CRASHED = "worker_crashed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation. ``subject`` is a job's id or a queue's name."""

    violation: Violation
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the check. ``excused`` jobs ended, unread, just before Redis forgot all about them."""

    findings: tuple[Finding, ...]
    excused: int

    def by_kind(self) -> dict[str, int]:
        """Count the violations; every kind has a number."""
        counts = Counter(finding.violation for finding in self.findings)
        return {kind.value: counts[kind] for kind in Violation}


def check(history: History) -> Verdict:
    """Check the whole history."""
    findings = [finding for job in history.jobs for finding in _check_job(job)]
    findings += _check_broker(history)
    findings += _check_keys(history)
    findings += _check_index(history)
    findings += (
        Finding(Violation.GARBAGE_LOST, subject, "it is not buried, or the job that it names has not failed")
        for subject in history.garbage_lost
    )
    excused = sum(_no_result(job) and _forgotten(job) for job in history.jobs)
    return Verdict(tuple(findings), excused)


def stream_problems(entries: Iterable[JournalEntry]) -> Iterator[tuple[Violation, str]]:
    """Find tokens that a stream lacks or has twice."""
    position = 0
    for entry in entries:
        match entry:
            case RestartedEntry():
                position = 0
            case TokensEntry():
                if entry.offset > position:
                    yield Violation.STREAM_GAP, f"tokens {position} to {entry.offset} are missing"
                if entry.offset < position:
                    yield Violation.STREAM_REPEAT, f"token {entry.offset} comes after {position - 1}"
                position = entry.offset + sum(len(chunk.token_ids) for chunk in entry.chunks)
            case _:
                pass


def _check_job(history: JobHistory) -> Iterator[Finding]:
    problems = [
        *_check_ends(history),
        *_check_text(history),
        *_check_models(history),
        *_check_fence(history),
        *stream_problems(history.journal),
        *_check_stream_ends(history),
        *(problem for stream in history.streams for problem in _check_stream(history, stream)),
    ]
    for violation, detail in problems:
        yield Finding(violation, history.job.id, detail)


def _check_ends(history: JobHistory) -> Iterator[tuple[Violation, str]]:
    if _no_result(history):
        if not _forgotten(history):
            yield Violation.NO_TERMINAL_RESULT, f"accepted and never ended; its journal: {_outline(history)}"
        return
    ends = [entry.state for entry in history.journal if isinstance(entry, FinishedEntry)]
    if len(ends) > 1:
        yield Violation.TWO_TERMINAL_RESULTS, f"the journal has {len(ends)} ends: {ends}"
    if len({result.model_dump_json() for result in _results(history)}) > 1 and not history.lost_result:
        yield Violation.TWO_TERMINAL_RESULTS, "different results were given out"
    if history.journal and history.stored is not None and ends[-1:] != [history.stored.state]:
        yield Violation.TWO_TERMINAL_RESULTS, f"the result says {history.stored.state}, the journal {ends}"
    for state in {result.state for result in _results(history)}:
        if state not in possible_ends(history.job) or (
            state is JobState.CANCELLED and not history.cancel_asked
        ):
            reason = next(result.error for result in _results(history) if result.state is state)
            yield Violation.WRONG_END, f"ended {state}: {reason}"


def _check_text(history: JobHistory) -> Iterator[tuple[Violation, str]]:
    for result in _results(history):
        if result.state is JobState.SUCCEEDED and result.text != _right_text(history, result):
            yield Violation.WRONG_TEXT, f"{result.text!r} is not {_right_text(history, result)!r}"
            return
    cut = history.stored
    streamed = _streamed_text(history.journal)
    if cut is not None and cut.state is not JobState.SUCCEEDED and streamed and cut.text != streamed:
        yield Violation.WRONG_TEXT, f"it was cut after {cut.text!r}, and the journal says {streamed!r}"


def _check_models(history: JobHistory) -> Iterator[tuple[Violation, str]]:
    """Check that all tokens of an answer are from one model, the one that the result names."""
    for entries in (history.journal, *history.streams):
        yield from _mixed_models(entries)
    generated_by = _model_of(history.journal)
    if history.stored is not None and generated_by not in (None, history.stored.model_identity):
        detail = f"the result names {history.stored.model_identity}, its tokens are those of {generated_by}"
        yield Violation.TWO_MODELS_IN_ONE_ANSWER, detail


def _mixed_models(entries: Iterable[JournalEntry]) -> Iterator[tuple[Violation, str]]:
    for answer in _models_of_tokens(entries):
        if len(models := set(answer)) > 1:
            yield Violation.TWO_MODELS_IN_ONE_ANSWER, f"one answer has tokens of {sorted(map(str, models))}"


def _model_of(entries: Iterable[JournalEntry]) -> str | None:
    """Return the model whose tokens count in the end."""
    return next(reversed(_models_of_tokens(entries)[-1]), None)


def _models_of_tokens(entries: Iterable[JournalEntry]) -> list[list[str | None]]:
    """Return, for each start of the answer, the model of each of its portions."""
    answers: list[list[str | None]] = [[]]
    running: str | None = None
    for entry in entries:
        match entry:
            case RunningEntry():
                running = entry.model_identity
            case RestartedEntry():
                answers.append([])
            case TokensEntry():
                answers[-1].append(running)
            case _:
                pass
    return answers


def _right_text(history: JobHistory, result: Result) -> str:
    return text_of(history.job, result.model_identity)


def _check_stream(history: JobHistory, stream: tuple[JournalEntry, ...]) -> Iterator[tuple[Violation, str]]:
    yield from stream_problems(stream)
    if stream and isinstance(stream[-1], FinishedEntry) and stream[-1].state is JobState.SUCCEEDED:
        text, right = _streamed_text(stream), text_of(history.job, _model_of(stream))
        if text != right:
            yield Violation.WRONG_TEXT, f"the stream says {text!r}, not {right!r}"


def _check_stream_ends(history: JobHistory) -> Iterator[tuple[Violation, str]]:
    """Check that the reader of each streamed job saw its end, unless Redis has lost the end."""
    if not history.job.stream or history.lost_result or _no_result(history):
        return
    for stream in history.streams or ((),):
        if not stream or not isinstance(stream[-1], FinishedEntry):
            yield Violation.STREAM_WITHOUT_END, f"its reader still waits, after {len(stream)} entries"


def _check_fence(history: JobHistory) -> Iterator[tuple[Violation, str]]:
    """Check that attempts only grow in a journal. (In a stream they may not: an emptied Redis counts from 1.)

    Attempt 0 is a client's, which cancels a waiting job without a fence.
    """
    newest = 0
    for entry in history.journal:
        if 0 < entry.attempt < newest:
            yield (
                Violation.WRITE_AFTER_FENCE,
                f"a {entry.kind} entry of attempt {entry.attempt} after {newest}",
            )
        newest = max(newest, entry.attempt)


def _check_broker(history: History) -> Iterator[Finding]:
    for queue, count in history.leftover.items():
        if count:
            yield Finding(Violation.LEFTOVER_MESSAGE, queue, f"{count} messages are left")
    jobs = {job.job.id: job.job for job in history.jobs}
    for job_id in set(history.dead_letters):
        if job_id in jobs and not may_be_dead_letter(jobs[job_id]):
            yield Finding(Violation.UNEXPECTED_DEAD_LETTER, job_id, "a job that does no harm was given up")


def _check_keys(history: History) -> Iterator[Finding]:
    """Check that all submissions under a key got the same job."""
    jobs_of: defaultdict[str, list[str]] = defaultdict(list)
    for job in history.jobs:
        if job.job.idempotency_key is not None:
            jobs_of[job.job.idempotency_key].append(job.job.id)
    for key, job_ids in jobs_of.items():
        if len(job_ids) > 1 and not history.keys_lost:
            yield Finding(Violation.TWO_JOBS_FOR_ONE_KEY, key, f"its jobs: {', '.join(job_ids)}")


def _check_index(history: History) -> Iterator[Finding]:
    """Check that the index of unfinished jobs has those whose records say so, and no others."""
    for job_id, state in history.index.items():
        if state is None or state.terminal:
            yield Finding(Violation.INDEX_DISAGREES, job_id, f"is in the index; its record says {state}")
    for job in history.jobs:
        if job.stored is None and job.journal and job.job.id not in history.index:
            detail = f"is unfinished, and not in the index; its journal: {_outline(job)}"
            yield Finding(Violation.INDEX_DISAGREES, job.job.id, detail)


def _forgotten(history: JobHistory) -> bool:
    """Return whether Redis has lost a job that had ended, and knows nothing of it any more."""
    return history.lost_result and not history.journal


def _outline(history: JobHistory) -> str:
    """Say what a journal has, without its tokens."""
    return ", ".join(
        f"{entry.kind} {entry.attempt} at {entry.at:%H:%M:%S.%f}"
        for entry in history.journal
        if not isinstance(entry, TokensEntry)
    )


def _no_result(history: JobHistory) -> bool:
    return not _results(history)


def _results(history: JobHistory) -> list[Result]:
    return [*history.seen, *([history.stored] if history.stored is not None else [])]


def _streamed_text(entries: Iterable[JournalEntry]) -> str:
    text = ""
    for entry in entries:
        match entry:
            case RestartedEntry():
                text = ""
            case TokensEntry():
                text += "".join(chunk.text for chunk in entry.chunks if chunk.index == 0)
            case _:
                pass
    return text
