"""One session, and what producers and workers do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis

from inferfleet.schemas import Job, Usage
from inferfleet.schemas.names import (
    job_key,
    session_key,
    state_key,
    turns_key,
)
from inferfleet.schemas.session import Turn
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis.attempts import Fence
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import WaitingTurns
from inferfleet.wire.redis.script import Argument
from inferfleet.wire.redis.session_histories import AppendStatus, BeginResult, BeginStatus, SessionHistories
from inferfleet.wire.redis.session_lanes import EnterResult, Payload, SessionLanes, Withdrawn
from inferfleet.wire.redis.session_records import SessionRecords

SESSION = "s"
BUSY_TTL_S = 9000
IDLE_TTL_S = 100


class Conversation:
    """What producers and workers do to one session, in short words."""

    def __init__(self, store: aioredis.Redis, pipeline: CommandPipeline, **settings: Any) -> None:
        self._store = store
        self._pipeline = pipeline
        having: dict[str, Any] = {
            "pipeline": pipeline,
            "settings": ServiceSettings(queued_ttl_s=BUSY_TTL_S, session_ttl_s=IDLE_TTL_S, **settings),
        }
        self.lanes = SessionLanes(**having)
        self.histories = SessionHistories(**having)
        self.records = SessionRecords(**having)

    @contextmanager
    def copies(self) -> Generator[list[tuple[Argument, ...]]]:
        """Keep what is sent meanwhile."""
        sent: list[tuple[Argument, ...]] = []
        enqueue = self._pipeline.enqueue

        def keep(*command: Argument) -> asyncio.Future[Any]:
            sent.append(command)
            return enqueue(*command)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._pipeline, "enqueue", keep)
            yield sent

    async def resend(self, sent: list[tuple[Argument, ...]]) -> None:
        """Have copies of scripts arrive that were held up on their way."""
        for command in sent:
            if command[0] == "EVALSHA":
                await self._pipeline.execute(*command)

    async def places(self) -> tuple[str, tuple[str, ...]]:
        """The turn that owns the session, and those that wait."""
        record = await self.records.get(SESSION)
        return ("", ()) if record is None else (record.owner or "", record.waiting)

    async def take_back(self, job: Job) -> Withdrawn:
        """What the producer of a turn does whose submission was refused."""
        await self.record(job, "queued", closed="call")
        return (await self.lanes.withdraw(job))[0]

    def with_settings(self, **settings: Any) -> Conversation:
        return Conversation(self._store, self._pipeline, **settings)

    async def record(self, job: Job, state: str, **fields: Any) -> None:
        """Have the job's record say this, as its own scripts would."""
        values: dict[Any, Any] = {"state": state, "attempt": 0, **fields}
        await self._store.hset(job_key(job.id), mapping=values)

    async def state(self, job: Job) -> str:
        state: Any = await self._store.hget(job_key(job.id), "state")
        return state.decode()

    async def enter(self, job: Job, **more: Any) -> EnterResult:
        await self.record(job, "queued")
        await self._store.hdel(job_key(job.id), "closed")
        return await self.lanes.enter(Payload(job, "client"), **more)

    async def advance(self, job: Job, **more: Any) -> str | None:
        await self.record(job, "succeeded")
        following = await self.lanes.advance(job, **more)
        return following.job.id if following else None

    async def begin(self, job: Job, attempt: int = 1, **more: Any) -> BeginStatus:
        return (await self.begun(job, attempt, **more)).status

    async def begun(self, job: Job, attempt: int = 1, **more: Any) -> BeginResult:
        fence = fence_of(job, attempt)
        await self.record(job, "running", fence=fence.token)
        return await self.histories.begin(job, fence=fence, **more)

    async def append(self, job: Job, attempt: int = 1, state: Any = None) -> AppendStatus:
        return await self.histories.append(
            job, fence=fence_of(job, attempt), turn=turn_of(job), answer=b"answer", state=state
        )

    async def counted(self, job: Job) -> bool:
        """Count a turn among those that wait, and no more."""
        return bool(await WaitingTurns(self._pipeline, lane_ttl_s=BUSY_TTL_S).count(job))

    async def run(self, job: Job) -> str | None:
        """A whole turn, from the message in the queue to its end. Returns what runs next."""
        assert await self.begin(job) is BeginStatus.BEGUN
        assert await self.append(job) is AppendStatus.OK
        return await self.advance(job)

    async def history(self) -> list[str]:
        return [turn.job_id for turn in await self.histories.turns(SESSION)]

    async def lifetimes(self) -> list[int]:
        """The rest of life in seconds of the session's record, turns and state."""
        return [await self._store.ttl(key(SESSION)) for key in (session_key, turns_key, state_key)]


def turn(**more: Any) -> Job:
    return Job(session_id=SESSION, body={"messages": [{"role": "user", "content": "hi"}]}, **more)


def turn_of(job: Job, *, tokens: int = 10, content: str = "yes") -> Turn:
    answer = {"role": "assistant", "content": content}
    return Turn(
        job_id=job.id,
        messages=(*job.body["messages"], answer),
        at=datetime.now(UTC),
        usage=Usage(prompt_tokens=5, completion_tokens=5),
        tokens=tokens,
    )


def fence_of(job: Job, attempt: int) -> Fence:
    return Fence(f"{job.id}:{attempt}", attempt)
