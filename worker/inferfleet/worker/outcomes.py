"""The outcomes of an attempt, as values. Pure: nothing here calls RabbitMQ or Redis."""

from __future__ import annotations

import random
from dataclasses import dataclass

from inferfleet.schemas import Failure, FailureCode, JobState
from inferfleet.schemas.plural import count_of
from inferfleet.worker.ports import Completion


@dataclass(frozen=True, slots=True)
class Finish:
    """Commit the result, then ack."""

    state: JobState
    completion: Completion | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Put the job back to ``queued``, and try it again after ``delay_s``."""

    failure: Failure
    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Dead-letter the message, commit the failure, then ack."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class HandOver:
    """Requeue the job at once, so that another worker resumes it.

    With ``refund`` the attempt is not charged.
    """

    refund: bool


@dataclass(frozen=True, slots=True)
class Defer:
    """Keep the message: another attempt has the job, or it has to wait. Check again after ``delay_s``.

    Without ``delay_s``, check again after a lease. The message stays unacked until then. It may be the only
    one: the other attempt may have started from a delivery on a connection that was already dead.
    """

    delay_s: float | None = None


@dataclass(frozen=True, slots=True)
class Postpone:
    """Publish the message again, so that it comes back after ``delay_s``, then ack.

    The job may not start for longer than a worker should hold a message.
    """

    delay_s: float


@dataclass(frozen=True, slots=True)
class Drop:
    """Ack the message, because its job has ended."""


@dataclass(frozen=True, slots=True)
class Park:
    """Put the job into its session's lane, because another turn owns the session.

    With ``refund`` the attempt is not charged.
    """

    refund: bool = True


@dataclass(frozen=True, slots=True)
class PassOn:
    """Publish the turn for any worker, because it has waited long enough for this one."""


Outcome = Finish | Retry | GiveUp | HandOver | Defer | Postpone | Drop | Park | PassOn


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter: ``base_s``, twice that, and so on up to ``cap_s`` seconds."""

    base_s: float
    cap_s: float

    def delay_s(self, attempts: int, *, rng: random.Random) -> float:
        """Return the delay in seconds after ``attempts`` failed attempts."""
        full = min(self.cap_s, self.base_s * 2.0 ** (attempts - 1))
        return full * rng.uniform(0.5, 1.0)


def after_failure(
    failure: Failure, *, attempts: int, max_attempts: int, policy: RetryPolicy, rng: random.Random
) -> Finish | Retry | GiveUp:
    """Decide the outcome of a failed attempt. ``attempts`` includes this one."""
    if not failure.code.retryable:
        return Finish(JobState.FAILED, failure=failure)
    if attempts < max_attempts:
        return Retry(failure, policy.delay_s(attempts, rng=rng))
    tried = count_of(attempts, "attempt")
    message = f"gave up after {tried}; the last failed with {failure.code}: {failure.message}"
    return GiveUp(Failure(code=FailureCode.TOO_MANY_ATTEMPTS, message=message[:4096]))


def cancelled(message: str) -> Finish:
    """Make the outcome of a job that somebody has cancelled."""
    return Finish(JobState.CANCELLED, failure=Failure(code=FailureCode.CANCELLED, message=message))
