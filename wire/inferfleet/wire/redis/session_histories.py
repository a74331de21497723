"""A session's history in Redis, to which one attempt at a time may add a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from inferfleet.schemas.errors import SessionError
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.names import session_key, state_key, turns_key
from inferfleet.schemas.session import Turn, continues
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis import session_scripts
from inferfleet.wire.redis.attempts import Fence
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import WaitingTurns
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.session_keys import all_keys, lane_keys, session_of

LOOKS = 2
"""How often to read a history: a session that is deleted between two reads seems to have lost data."""

HOW_LOST = (
    "Redis evicted or lost it, or somebody deleted it (keep maxmemory-policy at noeviction). "
    "Delete the session, or begin another"
)


def turns_lost(session_id: str, *, counted: int, present: int) -> str:
    """Make the message for a history that differs from the session's record."""
    return (
        f"session {session_id!r} has {counted} turns by its record, and {present} are there; "
        f"the rest is gone: {HOW_LOST}"
    )


class BeginStatus(StrEnum):
    """The reply to an attempt that begins a turn."""

    BEGUN = "begun"
    ANSWERED = "answered"
    TAKEN = "taken"
    FENCED = "fenced"
    LOST = "lost"


class AppendStatus(StrEnum):
    """The reply to adding a turn to the history."""

    OK = "ok"
    TAKEN = "taken"
    FENCED = "fenced"
    STATE_CONFLICT = "state_conflict"


@dataclass(frozen=True, slots=True)
class BeginResult:
    """The reply to an attempt that begins a turn. ``answer`` is the completion that an earlier attempt left.

    With ``LOST``, ``answer`` is how many turns there are, although the record counts ``turns``.
    """

    status: BeginStatus
    answer: bytes
    turns: int
    state_version: int
    max_history_tokens: int | None


class SessionHistories:
    """The histories of all sessions. Changes go through the pipeline and may be sent twice."""

    def __init__(self, *, pipeline: CommandPipeline, settings: ServiceSettings) -> None:
        self._pipeline = pipeline
        self.clock = pipeline.clock
        """Redis' time."""
        self._settings = settings
        self._records = JobRecords(
            pipeline=pipeline, result_ttl_s=settings.result_ttl_s, queued_ttl_s=settings.queued_ttl_s
        )
        self._waiting = WaitingTurns(pipeline, lane_ttl_s=settings.queued_ttl_s)

    async def begin(self, job: Job, *, fence: Fence, witness: Job | None = None) -> BeginResult:
        """Begin an attempt of the turn, under its own message or that of the job ``witness``."""
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
        """Begin a turn that ``left`` its lane at this moment. If it left at another, only return that."""
        (begin, answer, turns, state_version, limit), _ = await asyncio.gather(
            self._pipeline.enqueue(
                *session_scripts.begin(
                    *lane_keys(job),
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
        """Renew the session of a running turn, and the record of the job whose message carries it."""
        renewed = await self._pipeline.enqueue(
            *session_scripts.renew(
                *all_keys(session_of(job)),
                job=job.id,
                fence=fence.token,
                ttl_s=self._settings.queued_ttl_s,
            )
        )
        if renewed and witness is not None:
            await self._records.copied(witness.id)

    async def append(
        self,
        job: Job,
        *,
        fence: Fence,
        turn: Turn,
        answer: bytes,
        state: tuple[int, Any] | None,
        warm: str = "",
    ) -> AppendStatus:
        """Add the turn to the history and, with ``state``, replace the state if it has that version.

        ``warm`` is the routing key of the worker for which the next turn shall wait; ``""`` for none.
        """
        session_id = session_of(job)
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
                warm=warm,
            )
        )
        return AppendStatus(appended.decode())

    async def turns(self, session_id: str, *, max_tokens: int | None = None) -> tuple[Turn, ...]:
        """Read the turns, oldest first; with ``max_tokens``, only as many of the last as are needed."""
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
        # The first turn has the instructions, which always stay.
        first = _parse(await self._pipeline.execute("LRANGE", key, 0, 0))
        return tuple(turns) if turns[:1] == [*first] else (*first, *turns)

    async def whole_history(self, session_id: str) -> tuple[Turn, ...]:
        """Read all turns, oldest first.

        Raises:
            SessionError: The number of turns differs from the session's record.

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

    async def has_turn(self, job_id: str, session_id: str) -> bool:
        """Return whether the last turn of a session's history is this job's."""
        last = await self._pipeline.execute("HGET", session_key(session_id), "last_turn")
        return last is not None and last.decode() == job_id


def _parse(lines: Sequence[bytes]) -> tuple[Turn, ...]:
    return tuple(Turn.model_validate_json(line) for line in lines)
