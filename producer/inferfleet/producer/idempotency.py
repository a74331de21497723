"""The same idempotency key gives the same job, whoever asks and however often."""

from __future__ import annotations

import hashlib

import orjson

from inferfleet.schemas.errors import IdempotencyConflictError
from inferfleet.schemas.job import Job
from inferfleet.schemas.names import idempotency_key
from inferfleet.wire.pipeline import CommandPipeline


async def claim(pipeline: CommandPipeline, job: Job, *, ttl_s: int) -> Job:
    """Bind the job's key to its id, or find the job that has the key already.

    Returns the job under the id that holds the key.

    Raises:
        IdempotencyConflictError: The key belongs to a job with another pool, endpoint or body.

    """
    if job.idempotency_key is None:
        return job
    key = idempotency_key(job.tenant, job.idempotency_key)
    digest = _digest(job)
    holder: bytes | None = await pipeline.execute("SET", key, f"{job.id} {digest}", "NX", "GET", "EX", ttl_s)
    if holder is None:
        return job
    job_id, held_digest = holder.decode().split()
    if held_digest != digest:
        raise IdempotencyConflictError(
            f"the idempotency key {job.idempotency_key!r} belongs to job {job_id}, which has another pool, "
            "endpoint or body: send the same request again, or use a new key"
        )
    return job.model_copy(update={"id": job_id})


async def forget(pipeline: CommandPipeline, job: Job) -> None:
    """Free the key of a job that was not accepted."""
    if job.idempotency_key is not None:
        await pipeline.execute("DEL", idempotency_key(job.tenant, job.idempotency_key))


def _digest(job: Job) -> str:
    content = orjson.dumps([job.pool, job.endpoint, job.body], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()
