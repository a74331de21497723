"""The same idempotency key gives the same job, whoever asks and however often."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from inferfleet.schemas.errors import IdempotencyConflictError
from inferfleet.schemas.job import Job
from inferfleet.schemas.names import idempotency_key
from inferfleet.wire.pipeline import CommandPipeline


@dataclass(frozen=True, slots=True)
class Claim:
    """Who has a key. ``accepted`` says that the broker has the job, so that nothing is left to do."""

    job: Job
    accepted: bool


async def claim(pipeline: CommandPipeline, job: Job, *, ttl_s: int) -> Claim:
    """Bind the job's key to its id, or find the job that has the key already.

    The claimed job has the id that holds the key.

    Raises:
        IdempotencyConflictError: The key belongs to a job with another pool, endpoint, body or session.

    """
    if (key := _key(job)) is None:
        return Claim(job, accepted=False)
    # Two commands, and not one with ``GET``: sent again after an outage, they still say who was first.
    tried = pipeline.enqueue("SET", key, _held(job), "NX", "EX", ttl_s)
    holder: bytes = await pipeline.execute("GET", key)
    await tried
    job_id, digest, *accepted = holder.decode().split()
    if digest != _digest(job):
        raise IdempotencyConflictError(
            f"the idempotency key {job.idempotency_key!r} belongs to job {job_id}, which has another pool, "
            "endpoint, body or session: send the same request again, or use a new key"
        )
    return Claim(job.model_copy(update={"id": job_id}), accepted=bool(accepted))


async def accept(pipeline: CommandPipeline, job: Job, *, ttl_s: int) -> None:
    """Note that the broker has the job: from here on the key alone answers for it."""
    if (key := _key(job)) is not None:
        await pipeline.execute("SET", key, f"{_held(job)} accepted", "XX", "EX", ttl_s)


async def forget(pipeline: CommandPipeline, job: Job) -> None:
    """Free the key of a job that was not accepted."""
    if (key := _key(job)) is not None:
        await pipeline.execute("DEL", key)


def _key(job: Job) -> str | None:
    if job.idempotency_key is None:
        return None
    # With its length before it, a tenant cannot be spelt so that its keys look like another's.
    return idempotency_key(f"{len(job.tenant)}:{job.tenant}", job.idempotency_key)


def _held(job: Job) -> str:
    return f"{job.id} {_digest(job)}"


def _digest(job: Job) -> str:
    content: list[Any] = [job.pool, job.endpoint, job.body]
    if job.session_id is not None:
        content += [job.session_id, job.state_patch]
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
