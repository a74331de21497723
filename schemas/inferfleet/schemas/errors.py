"""What can go wrong for a caller, as one tree.

InferfleetError
├── InvalidJobError            the job breaks the contract; nothing was sent
│   └── IdempotencyConflictError   the key was used before with another body
├── UnknownPoolError           no queue is bound for the pool; nothing was accepted
├── QueueFullError             the pool's queue is at its limit; nothing was accepted
├── SessionError               a session cannot do what was asked
│   ├── SessionBusyError           a turn is unfinished and this one was not to wait
│   ├── SessionTooLargeError       the history is at its limit; nothing was accepted
│   └── StateConflictError         the state was changed by somebody else meanwhile
├── PublishUnconfirmedError    the broker may or may not have the job
├── PartialSubmitError         of many jobs, some were not accepted
├── UnknownWorkerError         no worker of that name is alive
├── JobNotFoundError           no record of the job: never accepted, or past its retention
├── JobDataLostError           Redis no longer has the result or the journal of a job
├── DeadLetterNotFoundError    a pool has no dead letter with this id
├── DeadLettersGoneError       a pool has fewer dead letters than were counted
├── JobFailedError             the job ended, and not well
├── WaitTimeoutError           the caller's patience ended first; what it waited for goes on
├── ServiceUnreachableError    RabbitMQ or Redis does not answer, or RabbitMQ does not let us in
├── ServiceRefusedError        RabbitMQ or Redis answers, and refuses what was asked, in its own words
├── ClientUnusableError        this client belongs to another process or event loop
└── ConfigurationError         a setting is wrong or an extra is missing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LISTED_WORKERS = 20
"""Workers that are named when one is not found; of the others only the number is told."""


class InferfleetError(Exception):
    """Root of every error that inferfleet raises on purpose."""


class InvalidJobError(InferfleetError):
    """The job breaks the contract. Nothing was sent."""


class IdempotencyConflictError(InvalidJobError):
    """The idempotency key belongs to a job with another body."""


class UnknownPoolError(InferfleetError):
    """No queue is bound for the pool. The job was not accepted."""


class QueueFullError(InferfleetError):
    """The pool's queue is at its admission limit. The job was not accepted; try again later."""


class SessionError(InferfleetError):
    """A session cannot do what was asked of it."""


class SessionBusyError(SessionError):
    """The session has an unfinished turn, and the job said ``on_busy="reject"``. It was not accepted."""


class SessionTooLargeError(SessionError):
    """The session's history is at its size limit. The job was not accepted."""


class StateConflictError(SessionError):
    """The session's state is at another version than the caller knew."""

    def __init__(self, session_id: str, *, expected: int, present: int) -> None:
        super().__init__(
            f"the state of session {session_id!r} is at version {present}, not {expected}: "
            "read it again and repeat the change"
        )
        self.expected = expected
        self.present = present


class PublishUnconfirmedError(InferfleetError):
    """The connection broke before the broker confirmed: the job may or may not be queued.

    Submitting again with the same idempotency key is safe.
    """


class PartialSubmitError(InferfleetError):
    """Of many jobs, some were not accepted.

    ``accepted`` holds the ids that were; ``rejected`` maps the position of each other job to its error.
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
    """No worker of that name is alive."""

    def __init__(self, worker_id: str, *, alive: Sequence[str]) -> None:
        those = ", ".join(alive[:LISTED_WORKERS]) or "none"
        more = f" and {len(alive) - LISTED_WORKERS} more" if len(alive) > LISTED_WORKERS else ""
        super().__init__(f"no worker {worker_id!r} is alive; those that are: {those}{more}")
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
    """Redis no longer has all that it was given of a job. ``missing`` is ``result`` or ``journal``.

    Of a job that was cancelled before it ran, and of a turn, the record stays when its result has expired.
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
    """The pool has no dead letters with these ids. None of those that were named with them was touched."""

    def __init__(self, pool: str, ids: Sequence[str]) -> None:
        super().__init__(
            f"pool {pool!r} has no dead letter {', '.join(map(repr, ids))}; `inferfleet dead list --pool "
            f"{pool}` shows those it has. Nothing was changed"
        )
        self.ids = tuple(ids)


class DeadLettersGoneError(InferfleetError):
    """The pool has fewer dead letters than were counted: somebody took some. None was touched since."""

    def __init__(self, pool: str, *, counted: int, present: int) -> None:
        super().__init__(
            f"pool {pool!r} has {present} dead letters, and {counted} were counted: somebody else has taken "
            "some meanwhile. Nothing was changed; count again"
        )
        self.counted = counted
        self.present = present


class JobFailedError(InferfleetError):
    """The job reached a terminal state other than ``succeeded``."""

    def __init__(self, *, job_id: str, state: str, code: str | None, message: str) -> None:
        super().__init__(f"job {job_id} {state}: {code + ': ' if code else ''}{message}")
        self.job_id = job_id
        self.state = state
        self.code = code


class WaitTimeoutError(InferfleetError, TimeoutError):
    """The caller's time limit passed first. What it waited for goes on and can be waited for again."""


class ServiceUnreachableError(InferfleetError, ConnectionError):
    """RabbitMQ or Redis does not answer, or refuses the credentials. The URL's password is left out."""


class ServiceRefusedError(InferfleetError):
    """RabbitMQ or Redis is there, and refuses what was asked. The message has its own reason.

    Nothing was accepted. ``passing`` says that the same may be granted in a while, without anybody's doing;
    otherwise repeating does not help before that reason is gone: too large a message, a missing permission.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class ClientUnusableError(InferfleetError, RuntimeError):
    """The client belongs to another process or event loop. The message says what to do."""


class ConfigurationError(InferfleetError):
    """A setting has a value that cannot work, or an optional part is not installed."""
