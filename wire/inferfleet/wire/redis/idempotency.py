"""Idempotency keys: the same key gives the same job, for every caller and every call."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import orjson

from inferfleet.schemas.errors import IdempotencyConflictError
from inferfleet.schemas.job import Job
from inferfleet.schemas.names import idempotency_key
from inferfleet.wire.redis import job_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline

_ACCEPTED = " accepted"


class Claim(NamedTuple):
    """The job that has a key. ``holder`` is the key's value; ``accepted`` says that the broker has the job.

    ``key`` is the key's name in Redis; ``""`` for a job without an idempotency key.
    """

    job: Job
    key: str
    holder: str
    accepted: bool


async def find_job(pipeline: CommandPipeline, tenant: str, key: str) -> str | None:
    """Return the id of the job that has a key."""
    holder: bytes | None = await pipeline.execute("GET", _name(tenant, key))
    return None if holder is None else holder.decode().partition(" ")[0]


async def claim(pipeline: CommandPipeline, job: Job, *, call: str, ttl_s: int) -> Claim:
    """Bind the job's key to its id, or find the job that has the key already.

    The claimed job has the id that holds the key. ``call`` is unique to this submission: if the submission is
    taken back, it frees only its own claim, not a later one.

    Raises:
        IdempotencyConflictError: The key belongs to a job with another pool, endpoint, body or session.

    """
    if (key := _key(job)) is None:
        return Claim(job, "", "", accepted=False)
    digest = _digest(job)
    answer: bytes = await pipeline.execute(
        *job_scripts.key_claim(key, holder=f"{job.id} {digest} {call}", ttl_s=ttl_s)
    )
    holder = answer.decode()
    job_id, present, *_ = holder.split()
    if digest != present:
        raise IdempotencyConflictError(
            f"the idempotency key {job.idempotency_key!r} belongs to job {job_id}, which has another pool, "
            "endpoint, body or session: send the same request again, or use a new key"
        )
    return Claim(job.model_copy(update={"id": job_id}), key, holder, accepted=holder.endswith(_ACCEPTED))


async def accept(pipeline: CommandPipeline, claimed: Claim, *, ttl_s: int) -> None:
    """Record that the broker has the job: from now on the key alone is enough to find it."""
    if claimed.key:
        holder = claimed.holder + _ACCEPTED
        await pipeline.execute(
            *job_scripts.key_change(
                claimed.key, present_holder=claimed.holder, new_holder=holder, ttl_s=ttl_s
            )
        )


async def accepted(pipeline: CommandPipeline, claimed: Claim) -> bool:
    """Return whether another caller's submission of the claimed job was accepted meanwhile."""
    if not claimed.key:
        return False
    holder: bytes | None = await pipeline.execute("GET", claimed.key)
    return holder == (claimed.holder + _ACCEPTED).encode()


async def forget(pipeline: CommandPipeline, claimed: Claim) -> None:
    """Free the key of a job that is taken back, unless somebody has claimed it again."""
    if claimed.key:
        await pipeline.execute(
            *job_scripts.key_change(claimed.key, present_holder=claimed.holder, new_holder="", ttl_s=0)
        )


def _key(job: Job) -> str | None:
    if job.idempotency_key is None:
        return None
    return _name(job.tenant, job.idempotency_key)


def _name(tenant: str, key: str) -> str:
    # The length in front keeps one tenant's keys from looking like another's.
    return idempotency_key(f"{len(tenant)}:{tenant}", key)


def _digest(job: Job) -> str:
    content: list[Any] = [job.submitted_to or job.pool, job.endpoint, job.body]
    if job.retrieve is not None:
        content.append(job.retrieve.model_dump(mode="json"))
    if job.after is not None:
        content.append(job.after)
    if job.session_id is not None:
        content += [job.session_id, job.state_patch]
        # Only if there are any: clients of earlier versions know no instructions.
        if job.instructions:
            content.append(job.instructions)
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
