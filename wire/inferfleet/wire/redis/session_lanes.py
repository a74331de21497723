"""The lanes of sessions in Redis: each lets one turn run at a time.

A waiting turn is only in its session's lane: it takes no slot of a worker, and is not in RabbitMQ.

    enter, the session is busy --> waits
                                     |
                                     | advance: the turn before is over
                                     v
    enter, the session is free --> in front --- published ----------> in the queue --- begin --+
                                     |                                                         v
                                     +--- published(witness=...) ---> carried --- begin ---> runs --> over
                                                                                                (advance)

The process that brings a turn to the front publishes it. A worker that ends a turn does so before it acks its
own message, or lets that message carry the next turn. If the worker dies in between, RabbitMQ delivers the
message to another worker, which does it (``inferfleet.worker.lanes``). A producer has no such message. So a
producer that enters a turn checks the turn in front (``front``), and publishes it or passes over it if nobody
else does (``inferfleet.producer.lanes``). This module, and ``ConfirmChannel.publish_job``, have what
producers and workers share. docs/sessions.md has a diagram of the states of a turn.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

import orjson

from inferfleet.schemas.errors import JobNotFoundError, ServiceUnreachableError
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.names import payloads_key, session_key, warm_turns
from inferfleet.schemas.result import Result
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis import session_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import WaitingTurns
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.replicas import Replicas
from inferfleet.wire.redis.session_keys import CALL_TTL_S, lane_keys, new_token, session_of


class EnterStatus(StrEnum):
    """The reply to a turn that asks to run."""

    RUN = "run"
    WAIT = "wait"
    BUSY = "busy"
    TOO_LARGE = "too_large"

    FULL = "full"
    """As many turns of the pool wait as its queue may hold."""

    BEGUN = "begun"
    """The job does not wait: it runs, or has ended."""

    MISSING = "missing"
    """The job has no record."""


class Withdrawn(StrEnum):
    """The reply to a producer that takes its turn back."""

    OVER = "over"
    """The turn has no place in the session any more."""

    PUBLISHED = "published"
    """Somebody else has published the turn, so it runs."""

    OFFERED = "offered"
    """Somebody else was told to publish the turn, and may have, or submits it again."""


@dataclass(frozen=True, slots=True)
class Payload:
    """A turn as it will be published. ``warm`` is the routing key of the worker that had the one before."""

    job: Job
    reply_to: str
    warm: str = ""

    def encode(self) -> bytes:
        """Encode the turn as JSON."""
        return orjson.dumps({"reply_to": self.reply_to, "job": self.job.model_dump(mode="json")})

    @classmethod
    def decode(cls, data: bytes) -> Payload | None:
        """Decode a turn from JSON; ``None`` from nothing."""
        if not data:
            return None
        value = orjson.loads(data)
        return cls(Job.model_validate(value["job"]), value["reply_to"])


@dataclass(frozen=True, slots=True)
class EnterResult:
    """The reply to a turn that asks to run. ``again`` is the owner, if it has to be published again.

    While ``unpublished``, nobody has recorded that the owner's message is in the queue. ``warm`` is as in
    ``Payload``, for the turn that asks.
    """

    status: EnterStatus
    owner: str
    again: Payload | None
    unpublished: bool
    warm: str = ""


@dataclass(frozen=True, slots=True)
class Front:
    """The turn that owns a session, for the producer of another turn; ``owner`` is ``""`` if there is none.

    While ``unpublished``, nobody has recorded that the owner has a message. ``revived`` says that it was
    published again since its last attempt began, ``placed`` that the other turn still has a place in the
    session. A caller that is going to publish the owner gets its ``payload``, unless Redis has lost that.
    """

    owner: str
    unpublished: bool
    revived: bool
    placed: bool
    payload: Payload | None


class SessionLanes:
    """The lanes of all sessions. Changes go through the pipeline and may be sent twice."""

    def __init__(
        self, *, pipeline: CommandPipeline, settings: ServiceSettings, replicas: Replicas | None = None
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._records = JobRecords(
            pipeline=pipeline,
            result_ttl_s=settings.result_ttl_s,
            queued_ttl_s=settings.queued_ttl_s,
            keep_requests=settings.keep_requests,
            replicas=replicas,
        )
        self._waiting = WaitingTurns(pipeline, lane_ttl_s=settings.queued_ttl_s)

    async def enter(
        self, payload: Payload, *, admitted: bool = False, witness: Job | None = None
    ) -> EnterResult:
        """Ask to run a turn. With ``RUN`` the caller must publish it; with ``WAIT`` it is in the lane.

        A turn that was ``admitted`` before is not refused. If the owner has no message, the turn gets the
        owner at once: its own message, or that of the job ``witness``, may be the last one in the session.
        """
        job, left = payload.job, b""
        # Counted before it waits, so that every waiting turn is counted.
        counted = admitted and bool(await self._waiting.count(job, admitted=True))
        while True:
            entered, left_at = await self._enter(
                payload, admitted=admitted, counted=counted, left=left, witness=witness
            )
            if entered is None:
                held = await self._records.held(job.id)
                if held.waits:
                    left = left_at
                    continue
                entered = EnterResult(
                    EnterStatus.BEGUN if held.state else EnterStatus.MISSING, "", None, unpublished=False
                )
            elif entered.status is EnterStatus.FULL and not counted:
                # Only a turn that has to wait takes this round trip.
                counted = bool(await self._waiting.count(job))
                if counted:
                    continue
            if counted:
                if entered.status is EnterStatus.WAIT:
                    await self._waiting.keep(job)
                else:
                    await self._waiting.forget(job.id, job.pool)
            return entered

    async def _enter(
        self, payload: Payload, *, admitted: bool, counted: bool, left: bytes, witness: Job | None
    ) -> tuple[EnterResult | None, bytes]:
        """Ask to run a turn that ``left`` its lane at this moment. If it left at another, only return it."""
        job = payload.job
        entry, owner, again, unpublished, warm = await self._pipeline.enqueue(
            *session_scripts.enter(
                *lane_keys(job),
                job=job.id,
                payload=payload.encode(),
                on_busy=job.on_busy.value,
                ttl_s=self._settings.queued_ttl_s,
                stale_ms=0 if admitted else int(self._settings.turn_publish_grace_s * 1000),
                max_bytes=self._settings.max_session_bytes,
                admitted=int(admitted),
                counted=int(counted),
                known_left=left,
                entry=new_token(),
                left_ttl_s=CALL_TTL_S,
                witness=witness.id if witness is not None else "",
            )
        )
        if entry == b"left":
            return None, again
        return (
            EnterResult(
                EnterStatus(entry.decode()),
                owner.decode(),
                Payload.decode(again),
                bool(unpublished),
                await self._usable(warm, job) if entry == b"run" else "",
            ),
            left,
        )

    async def front(self, job: Job, *, take: str = "") -> Front:
        """Read the turn that owns the job's session.

        If the caller is going to publish the owner, it passes that as ``take``; then the owner's producer can
        no longer take it back.
        """
        session_id = session_of(job)
        owner, unpublished, revived, placed, payload = await self._pipeline.enqueue(
            *session_scripts.front(session_key(session_id), payloads_key(session_id), job=job.id, take=take)
        )
        return Front(owner.decode(), bool(unpublished), bool(revived), bool(placed), Payload.decode(payload))

    async def owner(self, session_id: str) -> tuple[str, int]:
        """Read the turn that owns a session, ``""`` if none does, and since when in Unix milliseconds."""
        owner, since = await self._pipeline.execute("HMGET", session_key(session_id), "owner", "owner_since")
        return (owner or b"").decode(), int(since or 0)

    async def published(self, job: Job, *, witness: Job | None = None, again: bool = False) -> None:
        """Record that the owner's message is in the queue, or that the message of ``witness`` carries it.

        ``again`` says that it had a message before, which may have been lost with its attempt.
        """
        await asyncio.gather(
            self._pipeline.enqueue(
                *session_scripts.published(
                    session_key(session_of(job)),
                    job=job.id,
                    witness=(witness or job).id,
                    again=int(again),
                )
            ),
            self._waiting.forget(job.id, job.pool),
        )

    async def advance(self, job: Job, *, witness: Job | None = None) -> Payload | None:
        """End a turn, however its job ended. Return the next turn, which the caller must publish.

        ``witness`` is the job whose message RabbitMQ delivers again until that is done, by default the ended
        one. Waiting turns whose requests Redis has lost end here as failed.

        Raises:
            ServiceUnreachableError: Redis no longer knows that the turn has ended.

        """
        standing, pool = await asyncio.gather(self._records.standing(job.id), self._records.pool(job.id))
        if not standing.over:
            # After a failover, for example. Publishing the next turn now would let two turns run.
            raise ServiceUnreachableError(
                f"Redis says that job {job.id} has not ended, and so its session's next turn cannot run yet"
            )
        (_, following), _ = await asyncio.gather(
            self._leave(job, witness or job), self._waiting.forget(job.id, pool or job.pool)
        )
        return following

    async def withdraw(self, job: Job) -> tuple[Withdrawn, Payload | None]:
        """Take a turn back, unless somebody else may have published it.

        With ``OVER`` the turn has no place in the session any more, or never had one. Also returns the next
        turn, which the caller must publish.
        """
        while True:
            # In this order: a caller that submits the job again opens the record before its turn enters.
            entry = await self._pipeline.execute("HGET", session_key(session_of(job)), "entry") or b""
            held = await self._records.held(job.id)
            if held.state is not None and not held.closed:
                return Withdrawn.OFFERED, None
            verdict, following = await self._leave(job, job, entry=entry)
            if verdict == Withdrawn.OVER:
                await self._waiting.forget(job.id, job.pool)
            if verdict != "entered":
                return Withdrawn(verdict), following

    async def _leave(
        self, job: Job, witness: Job, *, entry: bytes | None = None
    ) -> tuple[str, Payload | None]:
        """Give up a turn's place; with ``entry`` only if that is still the last call that entered."""
        verdict, payload, warm, *lost = await self._pipeline.enqueue(
            *session_scripts.advance(
                *lane_keys(job),
                job=job.id,
                default_idle_ttl_s=self._settings.session_ttl_s,
                witness=witness.id,
                undo=int(entry is not None),
                known_entry=entry or b"",
                left_ttl_s=CALL_TTL_S,
            )
        )
        for job_id in lost:
            await self.end_lost(job_id.decode())
        following = Payload.decode(payload)
        if following is not None:
            following = replace(following, warm=await self._usable(warm, following.job))
        return verdict.decode(), following

    async def _usable(self, warm: bytes, job: Job) -> str:
        """Return the routing key of a worker if the turn may wait for it, ``""`` if not.

        The worker must be in the pool that the turn goes to. Redis must have the turn's request, which its
        producer decides: RabbitMQ may lose a message that it moves from a worker's queue.
        """
        key = warm.decode()
        in_pool = key.startswith(warm_turns(job.pool, ""))
        return key if in_pool and await self._records.has_request(job.id) else ""

    async def end_lost(self, job_id: str) -> None:
        """End a turn that nobody can publish, because Redis has lost its request."""
        failure = Failure(
            code=FailureCode.SESSION_CONFLICT,
            message="the request of this turn is gone: Redis evicted or lost the session's payloads while it "
            "waited, or somebody deleted them; submit it again",
        )
        if (pool := await self._records.pool(job_id)) is not None:
            await self._waiting.forget(job_id, pool)
        with suppress(JobNotFoundError):
            await self._records.cancel(job_id, Result(job_id=job_id, state=JobState.FAILED, error=failure))
