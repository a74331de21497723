"""A session's record and state: everything that Redis knows of a session besides its turns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from itertools import compress
from typing import Any

import orjson

from inferfleet.schemas.errors import SessionError
from inferfleet.schemas.names import lane_key, session_key, state_key, turns_key
from inferfleet.schemas.session import SessionRecord, Turn
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis import session_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.session_histories import HOW_LOST, LOOKS
from inferfleet.wire.redis.session_keys import CALL_TTL_S, all_keys, call_key, new_token, with_call


class ReplaceStatus(StrEnum):
    """The reply to replacing a state."""

    OK = "ok"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"


class SessionRecords:
    """The records of all sessions. Changes go through the pipeline and may be sent twice."""

    def __init__(self, *, pipeline: CommandPipeline, settings: ServiceSettings) -> None:
        self._pipeline = pipeline
        self._clock = pipeline.clock
        self._settings = settings

    async def state(self, session_id: str) -> tuple[int, Any]:
        """Read the state and its version; a session without a state has version 0.

        Raises:
            SessionError: The session has had a state, but Redis no longer has it.

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

    async def replace_state(self, session_id: str, state: Any, *, version: int) -> tuple[ReplaceStatus, int]:
        """Replace the state if it has this ``version``. Return the status and the current version."""
        value = orjson.dumps(state)
        if len(value) > self._settings.max_session_bytes:
            # Redis refuses values of more than 512 MB, and closes the connection.
            return ReplaceStatus.TOO_LARGE, version
        replaced, now = await self._pipeline.enqueue(
            *session_scripts.replace_state(
                session_key(session_id),
                turns_key(session_id),
                state_key(session_id),
                expected_version=version,
                state=value,
                now_ms=self._clock.now_ms(),
                default_idle_ttl_s=self._settings.session_ttl_s,
                max_bytes=self._settings.max_session_bytes,
                token=new_token(),
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
        """Create a session from turns and a state. Return false if it exists."""
        lines = [turn.model_dump_json(exclude_none=True) for turn in turns]
        made = await self._pipeline.enqueue(
            *session_scripts.import_turns(
                *with_call(session_id),
                *lines,
                now_ms=self._clock.now_ms(),
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
        """Read what is known of a session; ``None`` if there is none, or if it was deleted."""
        fields, lane = await asyncio.gather(
            self._pipeline.enqueue("HGETALL", session_key(session_id)),
            self._pipeline.enqueue("LRANGE", lane_key(session_id), 0, -1),
        )
        if b"created_at" not in fields:
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
        """Return the ids of at most ``limit`` sessions, in no particular order."""
        found: set[str] = set()
        for server in await self._pipeline.servers():
            cursor = b"0"
            while len(found) < limit:
                cursor, keys = await server.execute(
                    "SCAN", cursor, "MATCH", session_key("*"), "COUNT", 1000, "TYPE", "hash"
                )
                there = await asyncio.gather(
                    *(self._pipeline.enqueue("HEXISTS", key, "created_at") for key in keys)
                )
                for key in compress(keys, there):
                    name = key.decode()
                    found.add(name[name.index("{") + 1 : -1])
                if int(cursor) == 0:
                    break
        return sorted(found)[:limit]

    async def configure(
        self, session_id: str, *, idle_ttl_s: int | None, max_history_tokens: int | None
    ) -> None:
        """Set how long an idle session is kept, and how much history enters a prompt; ``None`` keeps one."""
        await self._pipeline.enqueue(
            *session_scripts.configure(
                *with_call(session_id),
                idle_ttl_s="" if idle_ttl_s is None else idle_ttl_s,
                max_history_tokens="" if max_history_tokens is None else max_history_tokens,
                now_ms=self._clock.now_ms(),
                default_idle_ttl_s=self._settings.session_ttl_s,
                call_ttl_s=CALL_TTL_S,
            )
        )

    async def delete(self, session_id: str) -> bool:
        """Delete a session. Its running and waiting turns go on, and nothing of them is kept in it."""
        keys = (*all_keys(session_id), call_key(session_id))
        return bool(await self._pipeline.enqueue(*session_scripts.delete(*keys, call_ttl_s=CALL_TTL_S)))


def _moment(milliseconds: str | None) -> datetime | None:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds else None
