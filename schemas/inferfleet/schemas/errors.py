"""The tree of all errors that a caller can get.

InferfleetError
├── InvalidJobError            the job breaks the contract; nothing was sent
│   └── IdempotencyConflictError   the key was used before with another body
├── UnknownPoolError           the pool has no queue; nothing was accepted
├── RolloutError               a rollout does not allow what was asked
├── QueueFullError             the pool's queue is full; nothing was accepted
├── TooLateError               the job would expire before it starts; nothing was accepted
├── SessionError               a session cannot do what was asked
│   ├── SessionBusyError           a turn is unfinished, and this one was not to wait
│   ├── SessionTooLargeError       the session is at its size limit; nothing was accepted
│   └── StateConflictError         somebody else has changed the state
├── PublishUnconfirmedError    the broker may or may not have the job
├── PartialSubmitError         of many jobs, some were not accepted
├── UnknownWorkerError         no worker with that id is alive
├── JobNotFoundError           no record of the job: never accepted, or past its retention
├── JobDataLostError           Redis no longer has the result or the journal of a job
├── DeadLetterNotFoundError    a pool has no dead letter with this id
├── DeadLettersGoneError       a pool has fewer dead letters than were counted
├── DeadLettersBusyError       another client has the dead letters of a pool
├── PartialReplayError         of several dead letters, some were not submitted again
├── JobFailedError             the job ended in a state other than succeeded
├── RunError                   a run of an agent does not allow what was asked
│   └── RunNotFoundError           no record of the run
├── RetrievalError             an index of documents does not allow what was asked
│   ├── UnknownIndexError          the tenant has no index of that name
│   └── EmbeddingTimeoutError      a pool has not embedded a question in time
├── AnswerRestartedError       the answer restarts; the text that was read is void
├── BatchError                 the files of a batch do not allow what was asked
│   └── BatchOutputError           a file of a batch cannot be written
├── WaitTimeoutError           the wait timed out; what it waited for continues
├── ServiceUnreachableError    RabbitMQ or Redis does not answer, or RabbitMQ refuses the login
├── ServiceRefusedError        RabbitMQ or Redis answers, but refuses the request
├── ClientUnusableError        this client belongs to another process or event loop
└── ConfigurationError         a setting is invalid, or an extra is not installed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferfleet.schemas.job import Job

LISTED_WORKERS = 20
"""How many workers the message names when one is not found; it only counts the others."""


class InferfleetError(Exception):
    """The root of every error that inferfleet raises on purpose."""


class InvalidJobError(InferfleetError):
    """The job breaks the contract. Nothing was sent."""


class IdempotencyConflictError(InvalidJobError):
    """The idempotency key belongs to a job with another body."""


class UnknownPoolError(InferfleetError):
    """The pool has no queue. The job was not accepted."""


class RolloutError(InferfleetError):
    """A rollout does not allow what was asked of it. Nothing was changed."""


class QueueFullError(InferfleetError):
    """The pool's queue is full. The job was not accepted; try again later."""


class TooLateError(InferfleetError):
    """The job would expire before it starts, and has ``on_late="reject"``. The job was not accepted.

    ``starts_in_s`` is in how many seconds a job of its priority may start.
    """

    def __init__(self, message: str, *, starts_in_s: float) -> None:
        super().__init__(message)
        self.starts_in_s = starts_in_s


class SessionError(InferfleetError):
    """A session cannot do what was asked of it."""


class SessionBusyError(SessionError):
    """The session has an unfinished turn, and the job has ``on_busy="reject"``. The job was not accepted."""


class SessionTooLargeError(SessionError):
    """The session is at its size limit. The job was not accepted."""


class StateConflictError(SessionError):
    """The session's state has another version than the one that the caller passed."""

    def __init__(self, session_id: str, *, expected: int, present: int) -> None:
        super().__init__(
            f"the state of session {session_id!r} is at version {present}, not {expected}: "
            "read it again and repeat the change"
        )
        self.expected = expected
        self.present = present


class PublishUnconfirmedError(InferfleetError):
    """A connection broke before the broker's confirm, or while Redis recorded the job: it may or may not run.

    It is safe to submit the job again with the same idempotency key. ``job_id`` is the id of a single job.
    """

    job_id: str | None = None


class PartialSubmitError(InferfleetError):
    """Of many jobs, some were not accepted.

    ``accepted`` holds the ids of the accepted jobs; ``rejected`` maps each other job's position to its error.
    """

    def __init__(self, *, accepted: Sequence[str], rejected: Mapping[int, InferfleetError]) -> None:
        first, error = next(iter(rejected.items()))
        super().__init__(
            f"{len(rejected)} of {len(accepted) + len(rejected)} jobs were not accepted; "
            f"the first is number {first}: {error}"
        )
        self.accepted = tuple(accepted)
        self.rejected = dict(rejected)


class UnknownWorkerError(InferfleetError):
    """No worker with that id is alive, or none of the pool that was named."""

    def __init__(self, worker_id: str, *, alive: Sequence[str], pool: str | None = None) -> None:
        those = ", ".join(alive[:LISTED_WORKERS]) or "none"
        more = f" and {len(alive) - LISTED_WORKERS} more" if len(alive) > LISTED_WORKERS else ""
        of_pool = "" if pool is None else f" of pool {pool!r}"
        super().__init__(f"no worker {worker_id!r}{of_pool} is alive; those that are: {those}{more}")
        self.worker_id = worker_id
        self.alive = tuple(alive)


class JobNotFoundError(InferfleetError):
    """There is no record of the job: it was never accepted, or its retention has passed."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"no record of job {job_id}: it was never accepted here, or its results have expired "
            "(INFERFLEET_RESULT_TTL_S)"
        )
        self.job_id = job_id


class JobDataLostError(InferfleetError):
    """Redis no longer has a job's result or journal; ``missing`` is ``result`` or ``journal``.

    This also happens to a turn, and to a job that was cancelled before it ran: their records outlive their
    results.
    """

    def __init__(self, job_id: str, *, missing: str) -> None:
        super().__init__(
            f"the {missing} of job {job_id} is gone, or a part of it: it has expired "
            "(INFERFLEET_RESULT_TTL_S), Redis evicted or lost it (keep maxmemory-policy at noeviction), or "
            "somebody deleted it. Submit the job again if you need its answer"
        )
        self.job_id = job_id
        self.missing = missing


class DeadLetterNotFoundError(InferfleetError):
    """The pool has no dead letters with these ids. The call changed nothing."""

    def __init__(self, pool: str, ids: Sequence[str]) -> None:
        super().__init__(
            f"pool {pool!r} has no dead letter {', '.join(map(repr, ids))}; `inferfleet dead list --pool "
            f"{pool}` shows those it has. Nothing was changed"
        )
        self.ids = tuple(ids)


class DeadLettersGoneError(InferfleetError):
    """The pool has fewer dead letters than were counted: somebody removed some. The call changed nothing."""

    def __init__(self, pool: str, *, counted: int, present: int) -> None:
        super().__init__(
            f"pool {pool!r} has {present} dead letters, and {counted} were counted: somebody else has taken "
            "some meanwhile. Nothing was changed; count again"
        )
        self.counted = counted
        self.present = present


class DeadLettersBusyError(InferfleetError):
    """Another client has the dead letters of the pool, and has not finished. Nothing was changed."""

    def __init__(self, pool: str) -> None:
        super().__init__(
            f"another client has the dead letters of pool {pool!r} and has not finished with them. "
            "Nothing was changed; try again later"
        )


class PartialReplayError(InferfleetError):
    """Of several dead letters, some were not submitted again. They stay in their queue.

    ``jobs`` are the new jobs of the others; ``refused`` maps the id of each letter that was refused to its
    error. ``stopped`` is the error that kept the letters behind from being tried, ``None`` if all were.
    """

    def __init__(
        self,
        *,
        jobs: Sequence[Job],
        refused: Mapping[str, InferfleetError],
        stopped: InferfleetError | None = None,
    ) -> None:
        parts = [f"{len(jobs)} of the dead letters were submitted again"]
        if refused:
            first, error = next(iter(refused.items()))
            parts.append(f"{len(refused)} were refused and stay; the first is {first!r}: {error}")
        if stopped is not None:
            parts.append(f"the others were not tried: {stopped}")
        super().__init__("; ".join(parts))
        self.jobs = tuple(jobs)
        self.refused = dict(refused)
        self.stopped = stopped


class JobFailedError(InferfleetError):
    """The job reached a terminal state other than ``succeeded``."""

    def __init__(self, *, job_id: str, state: str, code: str | None, message: str) -> None:
        why = f"{code}: {message}" if code and code != state else message
        super().__init__(f"job {job_id} {state}: {why}")
        self.job_id = job_id
        self.state = state
        self.code = code


class RunError(InferfleetError):
    """A run of an agent does not allow what was asked of it."""


class RunNotFoundError(RunError):
    """There is no record of the run: it was never started, or its retention has passed."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"no record of run {run_id}: it was never started here, or it has expired "
            "(INFERFLEET_RESULT_TTL_S)"
        )
        self.run_id = run_id


class RetrievalError(InferfleetError):
    """An index of documents does not allow what was asked of it."""


class UnknownIndexError(RetrievalError):
    """The tenant has no index of this name."""

    def __init__(self, name: str, *, tenant: str) -> None:
        super().__init__(
            f"tenant {tenant!r} has no index {name!r}: `inferfleet index list` shows those it has, and "
            "`inferfleet index create` makes one"
        )
        self.name = name
        self.tenant = tenant


class EmbeddingTimeoutError(RetrievalError, TimeoutError):
    """A pool has not embedded a question in time."""

    def __init__(self, pool: str, *, timeout_s: float) -> None:
        super().__init__(
            f"pool {pool!r} has not embedded the question within {timeout_s:g} s: does it have a worker, and "
            "is that not too busy?"
        )


class AnswerRestartedError(InferfleetError):
    """The answer restarts from the prompt. ``after`` is the cursor behind which the new answer begins."""

    def __init__(self, job_id: str, *, reason: str, after: str) -> None:
        super().__init__(
            f"the answer of job {job_id} restarts ({reason}): discard the text that you have, and read the "
            f"new answer with text_stream(job, after={after!r})"
        )
        self.job_id = job_id
        self.reason = reason
        self.after = after


class BatchError(InferfleetError):
    """The files of a batch do not allow what was asked. The message names the file, and the line if any."""


class BatchOutputError(BatchError):
    """A file of a batch cannot be written. The batch continues from there once it can be."""


class WaitTimeoutError(InferfleetError, TimeoutError):
    """The wait timed out. What it waited for continues, and the caller can wait for it again."""


class ServiceUnreachableError(InferfleetError, ConnectionError):
    """RabbitMQ or Redis does not answer, or RabbitMQ refuses the login. The message has no password.

    If ``in_doubt`` is true, the service may have executed the request before.
    """

    in_doubt: bool = False


class ServiceRefusedError(InferfleetError):
    """RabbitMQ or Redis answers, but refuses the request. The message quotes its reason.

    Nothing was accepted, unless it is ``in_doubt``: then the service may have executed the request before,
    and refuses its repetition. If ``passing`` is true, the same request may succeed later without anybody's
    help. Otherwise somebody has to remove the reason first: a message that is too large, a missing
    permission. ``too_large`` tells the first from the second, which concerns other requests as well.
    """

    in_doubt: bool = False

    def __init__(self, message: str, *, passing: bool = False, too_large: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
        self.too_large = too_large


class ClientUnusableError(InferfleetError, RuntimeError):
    """The client belongs to another process or event loop. The message says what to do."""


class ConfigurationError(InferfleetError):
    """A setting has an invalid value, or an extra is not installed."""
