"""The jobs of a soak: what each requests, how its client behaves, and how it may end.

Job ``n`` of a seed is always the same, so that a killed producer can submit it again, and the checker knows
its text.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from inferfleet.schemas import Job, JobState
from inferfleet.worker.engines.simulated import SimulatedEngine, SimulatedParameters, expected_text

MODELS = {"simulated": 0, "simulated-other": 1}
"""The models of a soak in which the next worker may have another one, with their weights."""

_WEIGHTS = {
    SimulatedEngine(model=name, max_running=1, engine_args={"weights": weights}).identity.short: weights
    for name, weights in MODELS.items()
}

KIND = "chaos"
"""The metadata key that holds a job's kind."""


class Kind(StrEnum):
    """The kind of a job."""

    PLAIN = "plain"
    STREAMED = "streamed"
    CANCELLED = "cancelled"
    EXPIRING = "expiring"
    DELAYED = "delayed"
    """Starts some seconds later."""
    CHOICES = "choices"
    """Has two choices, so it cannot be resumed and restarts."""
    FLAKY = "flaky"
    """Fails once in each worker process that runs it."""
    INVALID = "invalid"
    DOOMED = "doomed"
    """Always fails."""
    POISON = "poison"
    """Kills each worker that runs it."""
    ENGINE_KILLER = "engine_killer"
    """Kills the engine of each worker that runs it."""


WEIGHTS = {
    Kind.PLAIN: 600,
    Kind.STREAMED: 250,
    Kind.CANCELLED: 50,
    Kind.EXPIRING: 30,
    Kind.DELAYED: 30,
    Kind.CHOICES: 20,
    Kind.FLAKY: 20,
    Kind.INVALID: 15,
    Kind.DOOMED: 10,
    Kind.POISON: 1,
    Kind.ENGINE_KILLER: 1,
}

_ENDS = {
    Kind.PLAIN: {JobState.SUCCEEDED},
    Kind.STREAMED: {JobState.SUCCEEDED},
    Kind.CANCELLED: {JobState.SUCCEEDED, JobState.CANCELLED},
    Kind.EXPIRING: {JobState.SUCCEEDED, JobState.EXPIRED},
    Kind.DELAYED: {JobState.SUCCEEDED},
    Kind.CHOICES: {JobState.SUCCEEDED},
    Kind.FLAKY: {JobState.SUCCEEDED, JobState.FAILED},
    Kind.INVALID: {JobState.FAILED},
    Kind.DOOMED: {JobState.FAILED},
    Kind.POISON: {JobState.FAILED},
    Kind.ENGINE_KILLER: {JobState.FAILED},
}

TENANTS = 3
"""The number of tenants that submit a soak's jobs."""

_ATTEMPTS = 2
"""The ``max_attempts`` of jobs that can only fail."""

_PATIENT_ATTEMPTS = 25
"""The ``max_attempts`` of all other jobs. A worker of a soak lives for seconds, and its death charges every
job
that had no token yet: with the usual limit about one innocent job in a hundred can be dead-lettered."""

_HOPELESS = {Kind.DOOMED, Kind.POISON, Kind.ENGINE_KILLER}
_MAY_DIE = _HOPELESS | {Kind.FLAKY}


def make_job(*, seed: int, number: int, pool: str) -> Job:
    """Make job ``number`` of this seed. Its id is new each time, its idempotency key always the same."""
    rng = random.Random(f"{seed}:{number}")  # noqa: S311 - a repeatable workload
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    tokens = rng.choice((rng.randint(5, 30), rng.randint(30, 100), rng.randint(100, 250)))
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"question {number} of seed {seed}"}],
        "max_tokens": tokens,
        "temperature": 0,
        "simulated": {"tokens": tokens, **_fault(kind, rng.randint(0, tokens))},
    }
    if kind is Kind.CHOICES:
        # At temperature 0 both choices would be equal, so the job would be refused.
        body |= {"n": 2, "temperature": 1}
    if kind is Kind.INVALID:
        body["logprobs"] = True
    return Job(
        body=body,
        pool=pool,
        tenant=f"tenant-{number % TENANTS}",
        priority=rng.choice((1, 4, 4, 4, 7, 9)),
        stream=kind is Kind.STREAMED,
        max_attempts=_ATTEMPTS if kind in _HOPELESS else _PATIENT_ATTEMPTS,
        idempotency_key=f"chaos-{seed}-{number}",
        expires_at=datetime.now(UTC) + timedelta(seconds=rng.uniform(0.05, 2.0))
        if kind is Kind.EXPIRING
        else None,
        not_before=datetime.now(UTC) + timedelta(seconds=rng.uniform(0.5, 5.0))
        if kind is Kind.DELAYED
        else None,
        metadata={KIND: kind},
    )


def kind_of(job: Job) -> Kind:
    """Return the kind of a job; a job that is not from a soak is plain."""
    return Kind(job.metadata.get(KIND, Kind.PLAIN))


def possible_ends(job: Job) -> set[JobState]:
    """Return the states in which this job may end."""
    return _ENDS[kind_of(job)]


def may_be_dead_letter(job: Job) -> bool:
    """Return whether this job may be dead-lettered."""
    return kind_of(job) in _MAY_DIE


def text_of(job: Job, model_identity: str | None = None) -> str:
    """Return the text of an uninterrupted run of this job by this model, by default the first of ``MODELS``.

    Raises:
        GenerationError: The engine refuses the job.

    """
    parameters = SimulatedParameters(weights=_WEIGHTS.get(model_identity or "", 0))
    return expected_text(job.endpoint, job.body, parameters=parameters)


def _fault(kind: Kind, after_tokens: int) -> dict[str, Any]:
    match kind:
        case Kind.FLAKY:
            return {"fail": "engine_error", "fail_times": 1, "after_tokens": after_tokens}
        case Kind.DOOMED:
            return {"fail": "out_of_memory", "after_tokens": after_tokens}
        case Kind.POISON:
            return {"kill_worker": True, "after_tokens": after_tokens}
        case Kind.ENGINE_KILLER:
            return {"kill_engine": True, "after_tokens": after_tokens}
        case _:
            return {}
