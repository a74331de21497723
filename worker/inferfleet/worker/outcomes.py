"""What is to become of a delivery, as a value. Pure: nothing here talks to a broker or a store."""

from __future__ import annotations

import random
from dataclasses import dataclass

from inferfleet.schemas import Failure, FailureCode, JobState
from inferfleet.worker.ports import Completion


@dataclass(frozen=True, slots=True)
class Finish:
    """Commit a terminal result, then ack."""

    state: JobState
    completion: Completion | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Give the job back and let it come again after ``delay_s``."""

    failure: Failure
    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Put the message where a person will look at it, commit the failure, then ack."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give the job back to the queue at once: another worker goes on where this one stopped.

    With ``refund`` the attempt does not count against the job's limit.
    """

    refund: bool


@dataclass(frozen=True, slots=True)
class Defer:
    """Not now: another attempt has the job, or it has to pause. Look again after ``delay_s``, else a lease.

    The message stays unacked until then. It may be the only one: the other attempt's may have come from a
    connection that was dead already.
    """

    delay_s: float | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Ack: the job has ended."""


@dataclass(frozen=True, slots=True)
class Park:
    """Another turn owns the job's session: let it wait in the session's lane.

    With ``refund`` the attempt does not count against the job's limit.
    """

    refund: bool = True


Outcome = Finish | Retry | GiveUp | HandOver | Defer | Drop | Park


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter: ``base_s``, twice that, and so on up to ``cap_s`` seconds."""

    base_s: float
    cap_s: float

    def delay_s(self, attempts: int, *, rng: random.Random) -> float:
        """The delay after ``attempts`` attempts have failed."""
        full = min(self.cap_s, self.base_s * 2.0 ** (attempts - 1))
        return full * rng.uniform(0.5, 1.0)


def after_failure(
    failure: Failure, *, attempts: int, max_attempts: int, policy: RetryPolicy, rng: random.Random
) -> Finish | Retry | GiveUp:
    """Decide what follows a failed attempt. ``attempts`` counts this one."""
    if not failure.code.retryable:
        return Finish(JobState.FAILED, failure=failure)
    if attempts < max_attempts:
        return Retry(failure, policy.delay_s(attempts, rng=rng))
    message = f"gave up after {attempts} attempts; the last failed with {failure.code}: {failure.message}"
    return GiveUp(Failure(code=FailureCode.TOO_MANY_ATTEMPTS, message=message[:4096]))


def cancelled(message: str) -> Finish:
    """End a job because somebody asked for it."""
    return Finish(JobState.CANCELLED, failure=Failure(code=FailureCode.CANCELLED, message=message))
