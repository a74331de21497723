"""Sessions in Redis: the history, the state, and the lane that lets one turn run at a time.

A turn that waits is nowhere but in its session's lane: it takes no worker slot and is not in the broker.
The worker that ends a turn publishes the next one before it acks its own, or runs it under that, so a worker
that dies in between leaves a message that brings another worker to do it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson

from inferfleet.schemas.errors import JobNotFoundError, ServiceUnreachableError, SessionError
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.names import (
    lane_key,
    left_key,
    payloads_key,
    session_call_key,
    session_key,
    state_key,
    turns_key,
)
from inferfleet.schemas.result import Result
from inferfleet.schemas.session import SessionRecord, Turn, continues
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis import session_scripts
from inferfleet.wire.redis.attempts import Fence
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import WaitingTurns
from inferfleet.wire.redis.records import JobRecords

CALL_TTL_S = 3600
"""How long a change of a session is known as made. Nothing that was sent twice arrives later than that."""

LOOKS = 2
"""A session that is deleted between two reads seems to have lost something; at the second look it has not."""

HOW_LOST = (
    "Redis evicted or lost it, or somebody deleted it (keep maxmemory-policy at noeviction). "
    "Delete the session, or begin another"
)


def turns_lost(session_id: str, *, counted: int, present: int) -> str:
    """Say that a history is not what the session's record says."""
    return (
        f"session {session_id!r} has {counted} turns by its record, and {present} are there; "
        f"the rest is gone: {HOW_LOST}"
    )


class EnterStatus(StrEnum):
    """What came of a turn's wish to run."""

    RUN = "run"
    WAIT = "wait"
    BUSY = "busy"
    TOO_LARGE = "too_large"

    FULL = "full"
    """As many turns of its pool wait as its queue may hold."""

    BEGUN = "begun"
    """The job is not one that waits: it runs, or has ended."""

    MISSING = "missing"
    """The job has no record."""


class Withdrawn(StrEnum):
    """What came of a producer's wish to take its turn back."""

    OVER = "over"
    """It has no place any more."""

    PUBLISHED = "published"
    """Somebody else has published it: it runs."""

    OFFERED = "offered"
    """Somebody else was told to publish it, and may have, or submits it anew."""


class BeginStatus(StrEnum):
    """What came of an attempt's wish to begin a turn."""

    BEGUN = "begun"
    ANSWERED = "answered"
    TAKEN = "taken"
    FENCED = "fenced"
    LOST = "lost"


class AppendStatus(StrEnum):
    """What came of adding a turn to the history."""

    OK = "ok"
    TAKEN = "taken"
    FENCED = "fenced"
    STATE_CONFLICT = "state_conflict"


class ReplaceStatus(StrEnum):
    """What came of replacing a state."""

    OK = "ok"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class Payload:
    """A turn as it will be published."""

    job: Job
    reply_to: str

    def encode(self) -> bytes:
        """As JSON."""
        return orjson.dumps({"reply_to": self.reply_to, "job": self.job.model_dump(mode="json")})

    @classmethod
    def decode(cls, data: bytes) -> Payload | None:
        """From JSON; ``None`` from nothing."""
        if not data:
            return None
        value = orjson.loads(data)
        return cls(Job.model_validate(value["job"]), value["reply_to"])


@dataclass(frozen=True, slots=True)
class EnterResult:
    """The answer to a turn that asked to run. ``again`` is the owner, if it has to be published again.

    While ``unpublished``, nobody has said that the owner's message is in the queue.
    """

    status: EnterStatus
    owner: str
    again: Payload | None
    unpublished: bool


@dataclass(frozen=True, slots=True)
class Front:
    """The turn that owns a session, as another one's producer sees it; ``owner`` is ``""`` if none does.

    While ``unpublished``, nobody has said that it has a message. ``revived`` says that it was published again
    since its last attempt began, ``placed`` that the other turn still has a place in the session. ``payload``
    is there for who is going to publish the owner, unless Redis has lost it.
    """

    owner: str
    unpublished: bool
    revived: bool
    placed: bool
    payload: Payload | None


@dataclass(frozen=True, slots=True)
class BeginResult:
    """The answer to an attempt that begins. ``answer`` is what an earlier attempt left: its completion.

    With ``LOST`` it is how many turns there are, where the record counts ``turns``.
    """

    status: BeginStatus
    answer: bytes
    turns: int
    state_version: int
    max_history_tokens: int | None


class Sessions:
    """All sessions. Changes go through the pipeline and may be sent twice."""

    def __init__(self, *, pipeline: CommandPipeline, settings: ServiceSettings) -> None:
        self._pipeline = pipeline
        self.clock = pipeline.clock
        """Redis' time."""
        self._settings = settings
        self._records = JobRecords(
            pipeline=pipeline, result_ttl_s=settings.result_ttl_s, queued_ttl_s=settings.queued_ttl_s
        )
        self._waiting = WaitingTurns(pipeline, lane_ttl_s=settings.queued_ttl_s)

    async def enter(
        self, payload: Payload, *, admitted: bool = False, witness: Job | None = None
    ) -> EnterResult:
        """Ask for a turn. With ``RUN`` the caller must publish it; with ``WAIT`` it is in the lane.

        A turn that was ``admitted`` before is not refused, and is given the owner at once while that has no
        message: its own, or that of the job ``witness``, may be the last that anybody has.
        """
        job, left = payload.job, b""
        # It is counted before it waits, so that nobody forgets it before.
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
                # Only a turn that has to wait pays for that.
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
        """Ask for a turn that ``left`` its place then. If that is not so: nothing, and when it did."""
        job = payload.job
        entry, owner, again, unpublished = await self._pipeline.enqueue(
            *session_scripts.enter(
                *_lane_keys(job),
                job=job.id,
                payload=payload.encode(),
                on_busy=job.on_busy.value,
                ttl_s=self._settings.queued_ttl_s,
                stale_ms=0 if admitted else int(self._settings.turn_publish_grace_s * 1000),
                max_bytes=self._settings.max_session_bytes,
                admitted=int(admitted),
                counted=int(counted),
                known_left=left,
                entry=_new_token(),
                left_ttl_s=CALL_TTL_S,
                witness=witness.id if witness is not None else "",
            )
        )
        if entry == b"left":
            return None, again
        return (
            EnterResult(
                EnterStatus(entry.decode()), owner.decode(), Payload.decode(again), bool(unpublished)
            ),
            left,
        )

    async def has_turn(self, job_id: str, session_id: str) -> bool:
        """Whether the last turn of a session's history is this job's."""
        last = await self._pipeline.execute("HGET", session_key(session_id), "last_turn")
        return last is not None and last.decode() == job_id

    async def front(self, job: Job, *, take: str = "") -> Front:
        """Look at the turn that owns the job's session.

        The caller is going to publish the owner ``take``, which its producer can no longer take back then.
        """
        session_id = _session(job)
        owner, unpublished, revived, placed, payload = await self._pipeline.enqueue(
            *session_scripts.front(session_key(session_id), payloads_key(session_id), job=job.id, take=take)
        )
        return Front(owner.decode(), bool(unpublished), bool(revived), bool(placed), Payload.decode(payload))

    async def published(self, job: Job, *, witness: Job | None = None, again: bool = False) -> None:
        """Note that the owner's message is in the queue, or that the message of ``witness`` carries it.

        ``again`` says that it had one, and that its attempt may have lost it.
        """
        await asyncio.gather(
            self._pipeline.enqueue(
                *session_scripts.published(
                    session_key(_session(job)), job=job.id, witness=(witness or job).id, again=int(again)
                )
            ),
            self._waiting.forget(job.id, job.pool),
        )

    async def advance(self, job: Job, *, witness: Job | None = None) -> Payload | None:
        """End a turn, whatever came of it. Returns the next turn, which the caller must publish.

        ``witness`` is the job whose message comes again until that is done; by default the ended one. Turns
        that waited and whose requests Redis has lost end here, as failed.

        Raises:
            ServiceUnreachableError: Redis no longer knows that the turn has ended.

        """
        standing, pool = await asyncio.gather(self._records.standing(job.id), self._records.pool(job.id))
        if not standing.over:
            # In a failover, perhaps. Whoever let the next turn run now would have two of them run.
            raise ServiceUnreachableError(
                f"Redis says that job {job.id} has not ended, and so its session's next turn cannot run yet"
            )
        (_, following), _ = await asyncio.gather(
            self._leave(job, witness or job), self._waiting.forget(job.id, pool or job.pool)
        )
        return following

    async def withdraw(self, job: Job) -> tuple[Withdrawn, Payload | None]:
        """Take a turn back, unless somebody else may have published it.

        With ``OVER`` the turn has no place in the session, whether it had one or not. Returns the next turn,
        too, which the caller must publish.
        """
        while True:
            # In this order: whoever submits the job anew has it opened before its turn enters.
            entry = await self._pipeline.execute("HGET", session_key(_session(job)), "entry") or b""
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
        verdict, payload, *lost = await self._pipeline.enqueue(
            *session_scripts.advance(
                *_lane_keys(job),
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
        return verdict.decode(), Payload.decode(payload)

    async def end_lost(self, job_id: str) -> None:
        """End a turn that nobody can publish, since its request is gone."""
        failure = Failure(
            code=FailureCode.SESSION_CONFLICT,
            message="the request of this turn is gone: Redis evicted or lost the session's payloads while it "
            "waited, or somebody deleted them; submit it again",
        )
        if (pool := await self._records.pool(job_id)) is not None:
            await self._waiting.forget(job_id, pool)
        with suppress(JobNotFoundError):
            await self._records.cancel(job_id, Result(job_id=job_id, state=JobState.FAILED, error=failure))

    async def begin(self, job: Job, *, fence: Fence, witness: Job | None = None) -> BeginResult:
        """BeginStatus an attempt of the turn, under its own message or that of the job ``witness``."""
        left = b""
        while True:
            begun, left = await self._begin(job, fence=fence, witness=witness or job, left=left)
            if begun is not None:
                return begun
            held = await self._records.held(job.id)
            if held.state is not JobState.RUNNING or held.fence != fence.token:
                return BeginResult(BeginStatus.FENCED, b"", 0, 0, None)

    async def _begin(
        self, job: Job, *, fence: Fence, witness: Job, left: bytes
    ) -> tuple[BeginResult | None, bytes]:
        """BeginStatus a turn that ``left`` its place then. If that is not so: nothing, and when it did."""
        (begin, answer, turns, state_version, limit), _ = await asyncio.gather(
            self._pipeline.enqueue(
                *session_scripts.begin(
                    *_lane_keys(job),
                    job=job.id,
                    fence=fence.token,
                    ttl_s=self._settings.queued_ttl_s,
                    attempt=fence.attempt,
                    witness=witness.id,
                    known_left=left,
                )
            ),
            self._waiting.forget(job.id, job.pool),
        )
        if begin == b"left":
            return None, answer
        return (
            BeginResult(
                BeginStatus(begin.decode()), answer, turns, state_version, int(limit) if limit else None
            ),
            left,
        )

    async def renew(self, job: Job, *, fence: Fence, witness: Job | None = None) -> None:
        """Let the session of a turn that runs live on, and the record of the job whose message it has."""
        renewed = await self._pipeline.enqueue(
            *session_scripts.renew(
                *_all_keys(_session(job)), job=job.id, fence=fence.token, ttl_s=self._settings.queued_ttl_s
            )
        )
        if renewed and witness is not None:
            await self._records.copied(witness.id)

    async def append(
        self, job: Job, *, fence: Fence, turn: Turn, answer: bytes, state: tuple[int, Any] | None
    ) -> AppendStatus:
        """Add the turn to the history and, with ``state``, replace the state of that version."""
        session_id = _session(job)
        version, value = ("", b"") if state is None else (state[0], orjson.dumps(state[1]))
        appended = await self._pipeline.enqueue(
            *session_scripts.append(
                session_key(session_id),
                turns_key(session_id),
                state_key(session_id),
                job=job.id,
                fence=fence.token,
                turn=turn.model_dump_json(exclude_none=True),
                answer=answer,
                now_ms=self.clock.now_ms(),
                expected_version=version,
                state=value,
                ttl_s=self._settings.queued_ttl_s,
            )
        )
        return AppendStatus(appended.decode())

    async def turns(self, session_id: str, *, max_tokens: int | None = None) -> tuple[Turn, ...]:
        """Read the turns, the oldest first; with ``max_tokens`` only as much of the past as it needs."""
        key = turns_key(session_id)
        if max_tokens is None:
            return _parse(await self._pipeline.execute("LRANGE", key, 0, -1))
        turns: list[Turn] = []
        last = -1
        while sum(turn.tokens for turn in turns) <= max_tokens or continues(turns[0]):
            block = _parse(await self._pipeline.execute("LRANGE", key, last - 63, last))
            turns[:0] = block
            last -= 64
            if len(block) < 64:
                return tuple(turns)
        # The first turn holds the instructions, which always stay.
        first = _parse(await self._pipeline.execute("LRANGE", key, 0, 0))
        return tuple(turns) if turns[:1] == [*first] else (*first, *turns)

    async def state(self, session_id: str) -> tuple[int, Any]:
        """Read the state and its version; version 0 is a session without one.

        Raises:
            SessionError: There has been a state, and it is gone.

        """
        value = None
        for _ in range(LOOKS):
            version, value = await asyncio.gather(
                self._pipeline.enqueue("HGET", session_key(session_id), "state_version"),
                self._pipeline.enqueue("GET", state_key(session_id)),
            )
            if (int(version or 0) > 0) == (value is not None):
                return int(version or 0), orjson.loads(value) if value is not None else None
        gone = "state" if value is None else "record"
        raise SessionError(f"session {session_id!r}: its {gone} is gone: {HOW_LOST}")

    async def whole_history(self, session_id: str) -> tuple[Turn, ...]:
        """Read all turns, the oldest first.

        Raises:
            SessionError: There are not as many as the session's record counts.

        """
        counted, lines = 0, list[bytes]()
        for _ in range(LOOKS):
            counted, lines = await asyncio.gather(
                self._pipeline.enqueue("HGET", session_key(session_id), "turns"),
                self._pipeline.enqueue("LRANGE", turns_key(session_id), 0, -1),
            )
            if int(counted or 0) == len(lines):
                return _parse(lines)
        raise SessionError(turns_lost(session_id, counted=int(counted or 0), present=len(lines)))

    async def replace_state(self, session_id: str, state: Any, *, version: int) -> tuple[ReplaceStatus, int]:
        """Replace the state if it is at ``version``. Returns what came of it, and the version now."""
        value = orjson.dumps(state)
        if len(value) > self._settings.max_session_bytes:
            # Redis itself refuses values of more than 512 MB, and ends the connection.
            return ReplaceStatus.TOO_LARGE, version
        replaced, now = await self._pipeline.enqueue(
            *session_scripts.replace_state(
                session_key(session_id),
                turns_key(session_id),
                state_key(session_id),
                expected_version=version,
                state=value,
                now_ms=self.clock.now_ms(),
                default_idle_ttl_s=self._settings.session_ttl_s,
                max_bytes=self._settings.max_session_bytes,
                token=_new_token(),
            )
        )
        return ReplaceStatus(replaced.decode()), now

    async def create(
        self,
        session_id: str,
        turns: Sequence[Turn],
        *,
        state: Any,
        idle_ttl_s: int | None,
        max_history_tokens: int | None,
    ) -> bool:
        """Make a session from turns and a state. False if it exists."""
        lines = [turn.model_dump_json(exclude_none=True) for turn in turns]
        made = await self._pipeline.enqueue(
            *session_scripts.import_turns(
                *_with_call(session_id),
                *lines,
                now_ms=self.clock.now_ms(),
                ttl_s=idle_ttl_s or self._settings.session_ttl_s,
                idle_ttl_s="" if idle_ttl_s is None else idle_ttl_s,
                max_history_tokens="" if max_history_tokens is None else max_history_tokens,
                state="" if state is None else orjson.dumps(state),
                history_bytes=sum(len(line.encode()) for line in lines),
                call_ttl_s=CALL_TTL_S,
            )
        )
        return bool(made)

    async def get(self, session_id: str) -> SessionRecord | None:
        """Read what is known of a session."""
        fields, lane = await asyncio.gather(
            self._pipeline.enqueue("HGETALL", session_key(session_id)),
            self._pipeline.enqueue("LRANGE", lane_key(session_id), 0, -1),
        )
        if not fields:
            return None
        text = {name.decode(): value.decode() for name, value in fields.items() if name != b"answer"}
        return SessionRecord(
            id=session_id,
            turns=int(text.get("turns", 0)),
            version=int(text.get("version", 0)),
            bytes=int(text.get("bytes", 0)),
            state_version=int(text.get("state_version", 0)),
            owner=text.get("owner") or None,
            waiting=tuple(job.decode() for job in lane),
            idle_ttl_s=int(text["idle_ttl_s"]) if "idle_ttl_s" in text else None,
            max_history_tokens=int(text["max_history_tokens"]) if "max_history_tokens" in text else None,
            created_at=_moment(text.get("created_at")),
            updated_at=_moment(text.get("updated_at")),
        )

    async def list(self, *, limit: int) -> list[str]:
        """The ids of sessions, in no order, at most ``limit``."""
        found: set[str] = set()
        cursor = b"0"
        while len(found) < limit:
            cursor, keys = await self._pipeline.execute(
                "SCAN", cursor, "MATCH", session_key("*"), "COUNT", 1000, "TYPE", "hash"
            )
            for key in keys:
                name = key.decode()
                found.add(name[name.index("{") + 1 : -1])
            if int(cursor) == 0:
                break
        return sorted(found)[:limit]

    async def configure(
        self, session_id: str, *, idle_ttl_s: int | None, max_history_tokens: int | None
    ) -> None:
        """Set how long an idle session stays and how much history goes into a prompt; ``None`` keeps it."""
        await self._pipeline.enqueue(
            *session_scripts.configure(
                *_with_call(session_id),
                idle_ttl_s="" if idle_ttl_s is None else idle_ttl_s,
                max_history_tokens="" if max_history_tokens is None else max_history_tokens,
                now_ms=self.clock.now_ms(),
                default_idle_ttl_s=self._settings.session_ttl_s,
                call_ttl_s=CALL_TTL_S,
            )
        )

    async def delete(self, session_id: str) -> bool:
        """Delete history and state. A turn that runs or waits goes on in an empty session."""
        keys = (*_all_keys(session_id), session_call_key(session_id, _new_token()))
        return bool(await self._pipeline.enqueue(*session_scripts.delete(*keys, call_ttl_s=CALL_TTL_S)))


def _all_keys(session_id: str) -> tuple[str, str, str, str, str]:
    return (
        session_key(session_id),
        lane_key(session_id),
        payloads_key(session_id),
        turns_key(session_id),
        state_key(session_id),
    )


def _lane_keys(job: Job) -> tuple[str, str, str, str, str, str]:
    """All that moves when a turn enters its lane or leaves it."""
    session_id = _session(job)
    return (*_all_keys(session_id), left_key(session_id))


def _with_call(session_id: str) -> tuple[str, str, str, str]:
    """A session's record, turns and state, and the call that changes them."""
    call = session_call_key(session_id, _new_token())
    return (session_key(session_id), turns_key(session_id), state_key(session_id), call)


def _session(job: Job) -> str:
    assert job.session_id is not None  # noqa: S101 - callers have checked
    return job.session_id


def _parse(lines: Sequence[bytes]) -> tuple[Turn, ...]:
    return tuple(Turn.model_validate_json(line) for line in lines)


def _moment(milliseconds: str | None) -> datetime | None:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds else None


def _new_token() -> str:
    """A name for one call, by which its script knows it when it is sent twice."""
    return os.urandom(8).hex()
