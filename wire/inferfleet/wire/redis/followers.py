"""Jobs that run after others: they wait in Redis, without a message, until all of those have succeeded.

The record of a job has the ids of those that follow it, so whoever ends it lets them go on: a worker before
it acks the job's message, a client that cancels the job. Records of two jobs are in different hash slots, so
each step leaves a state from which anybody can go on: a job first notes that it waits, and then looks whether
it still has to; and whoever ends a job ends it first, and then looks who follows. What is missed all the
same, as after a failover, the sweep finds (``inferfleet.worker.sweep``).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from enum import Enum, auto
from itertools import count
from typing import Final

from inferfleet.schemas.errors import InvalidJobError, ServiceUnreachableError
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.job import DEFAULT_TENANT, Job, JobState
from inferfleet.schemas.message import message_body, read_job
from inferfleet.schemas.names import job_key, journal_key, open_key, request_key
from inferfleet.schemas.predecessors import bytes_with_texts, with_texts
from inferfleet.schemas.request import check_request
from inferfleet.schemas.result import Result
from inferfleet.schemas.work import JobSize
from inferfleet.wire.redis import job_scripts
from inferfleet.wire.redis.job_reading import STATES
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords

logger = logging.getLogger(__name__)

MAX_FOLLOWERS: Final = 1000
"""How many jobs may follow one: their ids are in its record."""

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""The largest body with the texts of predecessors in it: what workers accept."""

AT_ONCE: Final = 64
"""How many jobs that follow the same one are looked at at the same time."""

REMEMBERED: Final = 64
"""For how many ended jobs a process remembers which of their followers it has published."""

_NO_TEXTS: Mapping[str, str] = {}

PublishReady = Callable[[Job, bytes, str], Awaitable[object]]
"""Publishes a job with this body of its message, for the client ``reply_to``."""


class Looked(Enum):
    """What a look at a job that follows others has found."""

    WAITS = auto()
    READY = auto()
    """All others have succeeded, and it is published."""
    ENDED = auto()
    """It has ended: another one has not succeeded, so this one has failed, or it had ended before."""
    OTHER = auto()
    """It waits for a worker, runs, is gone, or follows none."""


class Followers:
    """Lets jobs go on that follow others."""

    def __init__(
        self, pipeline: CommandPipeline, records: JobRecords, *, queued_ttl_s: int, publish: PublishReady
    ) -> None:
        self._pipeline = pipeline
        self._records = records
        self._queued_ttl_s = queued_ttl_s
        self._publish = publish
        self._name = os.urandom(4).hex()
        self._calls = count()
        self._published: dict[str, set[str]] = {}
        """By ended job, the followers that are published, while others of them cannot be."""

    async def require(self, job: Job) -> None:
        """Make sure that the jobs after which this one runs exist.

        Raises:
            InvalidJobError: One of them does not.
            ServiceUnreachableError, ServiceRefusedError: Redis does not answer.

        """
        for other, state in (await self._states(job.after or (), tenant=job.tenant)).items():
            if state is None:
                raise _no_such(other)

    async def _states(self, others: Sequence[str], *, tenant: str) -> dict[str, JobState | None]:
        """Return the states of a tenant's jobs; ``None`` if there is none, or it is another tenant's."""
        found = await asyncio.gather(
            *(self._pipeline.enqueue("HMGET", job_key(other), "state", "tenant") for other in others)
        )
        return {
            other: None if state is None or (its or tenant.encode()) != tenant.encode() else STATES[state]
            for other, (state, its) in zip(others, found, strict=True)
        }

    async def follow(self, job: Job) -> None:
        """Note at each job after which this one runs that it follows.

        Raises:
            InvalidJobError: One of them does not exist, or too many follow it.
            ServiceUnreachableError, ServiceRefusedError: Redis does not answer.

        """
        others = job.after or ()
        call = f"{self._name}:{next(self._calls)}"
        states = await asyncio.gather(
            *(
                self._pipeline.enqueue(
                    *job_scripts.follow(
                        job_key(other),
                        follower=job.id,
                        tenant=job.tenant,
                        most=MAX_FOLLOWERS,
                        call=call,
                    )
                )
                for other in others
            )
        )
        for other, state in zip(others, states, strict=True):
            if state == b"":
                raise _no_such(other)
            if state == b"full":
                raise InvalidJobError(f"after: {MAX_FOLLOWERS} jobs follow job {other}, which is the limit")

    async def unfollow(self, job: Job) -> None:
        """Forget at those jobs a closed job that its client takes back, unless it is submitted again.

        Idempotent.

        Raises:
            ServiceUnreachableError, ServiceRefusedError: Redis does not answer.

        """
        await asyncio.gather(*(self._unfollow(job, other) for other in job.after or ()))

    async def _unfollow(self, job: Job, other: str) -> None:
        while True:
            # In this order: a caller that submits the job again opens its record before it follows.
            known = await self._pipeline.execute("HGET", job_key(other), "followed_by") or b""
            if not (await self._records.held(job.id)).closed:
                return
            command = job_scripts.unfollow(
                job_key(other), follower=job.id, tenant=job.tenant, known_call=known
            )
            if await self._pipeline.enqueue(*command) != b"followed":
                return

    async def ended(self, job_id: str) -> None:
        """Let the jobs go on that follow one that has ended, and those that follow one that fails by that.

        One that cannot go on does not keep the others from it.

        Raises:
            InferfleetError, RefusedError: A job cannot be published. Call this again.

        """
        published = self._published.pop(job_id, set())
        ended, seen = [job_id], {job_id, *published}
        failures: list[Exception] = []
        while ended:
            other = ended.pop()
            followers: bytes | None = await self._pipeline.execute("HGET", job_key(other), "followers")
            ids = [follower for follower in (followers or b"").decode().split() if follower not in seen]
            seen.update(ids)
            known = await self._texts([other]) if ids else _NO_TEXTS
            for first in range(0, len(ids), AT_ONCE):
                batch = ids[first : first + AT_ONCE]
                looks = (self.look(follower, known=known) for follower in batch)
                looked = await asyncio.gather(*looks, return_exceptions=True)
                for follower, its in zip(batch, looked, strict=True):
                    if its is Looked.ENDED:
                        ended.append(follower)
                    elif its is Looked.READY:
                        published.add(follower)
                    elif isinstance(its, InvalidJobError):
                        # Its client is newer than this process: a newer worker's sweep lets it go on.
                        logger.warning("cannot read job %s, which follows job %s: %s", follower, other, its)
                    elif isinstance(its, Exception):
                        failures.append(its)
                    elif isinstance(its, BaseException):
                        raise its
                if any(isinstance(failure, ServiceUnreachableError) for failure in failures):
                    # The others would fare no better.
                    break
        if failures:
            self._published[job_id] = published
            while len(self._published) > REMEMBERED:
                del self._published[next(iter(self._published))]
            raise failures[0]
        self._records.followed.discard(job_id)

    async def look(
        self, job_id: str, *, submits: bool = False, known: Mapping[str, str] = _NO_TEXTS
    ) -> Looked:
        """Let a job go on if the others have ended. ``submits`` says that the caller submits the job.

        ``known`` are texts of others that the caller has read already. Raises as ``ended`` does.
        """
        state, attempt, after, ready, pool, priority, tenant = await self._pipeline.execute(
            "HMGET", job_key(job_id), "state", "attempt", "after", "ready", "pool", "priority", "tenant"
        )
        if state is not None and JobState(state.decode()).terminal:
            return Looked.ENDED
        if state != JobState.QUEUED.encode() or attempt != b"0" or not after:
            return Looked.OTHER
        if ready is not None:
            # Whoever made it ready may have died before it was published.
            return await self._let_go(job_id, b"", "", pool.decode(), int(priority), submits=submits)
        others = after.decode().split()
        # A submission that names a job of another tenant is refused, but may be looked at before.
        states = await self._states(others, tenant=(tenant or DEFAULT_TENANT.encode()).decode())
        for other in others:
            if (its := states[other]) is None or (its.terminal and its is not JobState.SUCCEEDED):
                return await self._fail(job_id, f"job {other} {_what_became(its)}")
        if any(its is not JobState.SUCCEEDED for its in states.values()):
            await self._renew(job_id)
            return Looked.WAITS
        request = await self._records.request(job_id)
        if request is None:
            return await self._fail(job_id, "Redis has lost its request", code=FailureCode.INTERNAL)
        known = {**known, **await self._texts([other for other in others if other not in known])}
        for other in others:
            if other not in known:
                return await self._fail(job_id, f"the result of job {other} has expired")
        texts = [known[other] for other in others]
        job = read_job(request)
        if (filled := bytes_with_texts(job.body, texts)) > MAX_BODY_BYTES:
            why = (
                f"with the texts of other jobs its body has {filled:,} bytes; the limit is {MAX_BODY_BYTES:,}"
            )
            return await self._fail(job_id, why, code=FailureCode.INVALID_REQUEST)
        # It begins to wait for a worker only now.
        since = self._records.clock.now() - timedelta(milliseconds=5)
        changes = {"body": with_texts(job.body, texts), "after": None, "not_before": since}
        job = job.model_copy(update=changes)
        try:
            check_request(job.endpoint, job.body, max_body_bytes=MAX_BODY_BYTES)
        except InvalidJobError as error:
            return await self._fail(job_id, str(error)[:4000], code=FailureCode.INVALID_REQUEST)
        body = message_body(job)
        size = JobSize.of(job.endpoint, job.body, request_bytes=len(body)).encoded()
        return await self._let_go(job_id, body, size, pool.decode(), int(priority), submits=submits)

    async def _texts(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Read the texts of ended jobs whose results have not expired."""
        results = await self._records.results(job_ids)
        return {job_id: Result.model_validate_json(result).text for job_id, result in results.items()}

    async def _let_go(
        self, job_id: str, request: bytes, size: str, pool: str, priority: int, *, submits: bool
    ) -> Looked:
        verdict, request, reply_to = await self._pipeline.enqueue(
            *job_scripts.let_go(
                job_key(job_id),
                request_key(job_id),
                request=request,
                size=size,
                ttl_s=self._queued_ttl_s,
                call="" if submits else self._name,
            )
        )
        if verdict == b"over" or not request:
            return Looked.OTHER
        # From now on it is one of those that wait, and is published again if its message is lost.
        now_ms = self._records.clock.now_ms()
        await self._pipeline.execute("ZADD", open_key(pool, priority), "XX", now_ms, job_id)
        await self._publish(read_job(request), request, reply_to.decode())
        return Looked.READY

    async def _fail(
        self, job_id: str, why: str, *, code: FailureCode = FailureCode.PREDECESSOR_FAILED
    ) -> Looked:
        failure = Failure(code=code, message=f"not started: {why}")
        result = Result(job_id=job_id, state=JobState.FAILED, error=failure)
        ended = await self._records.cancel(job_id, result, tokens=0, only_unready=True)
        return Looked.OTHER if ended is None else Looked.ENDED

    async def _renew(self, job_id: str) -> None:
        """Keep a job for as long as somebody looks at it."""
        keys = (job_key(job_id), journal_key(job_id), request_key(job_id))
        await asyncio.gather(*(self._pipeline.enqueue("EXPIRE", key, self._queued_ttl_s) for key in keys))


def _no_such(job_id: str) -> InvalidJobError:
    return InvalidJobError(f"after: there is no job {job_id}, or its record has expired")


def _what_became(state: JobState | None) -> str:
    match state:
        case None:
            return "has no record any more"
        case JobState.FAILED:
            return "has failed"
        case JobState.CANCELLED:
            return "was cancelled"
        case _:
            return f"has {state}"
