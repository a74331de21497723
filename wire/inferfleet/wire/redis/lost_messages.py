"""What workers tell each other in Redis to find jobs that have lost their messages; ``worker.sweep`` uses it.

RabbitMQ keeps the order of a priority. So when a worker is delivered a job for the first time, the queue has
no job of this priority that was published much earlier: each was delivered before, or has lost its message.
Such a moment is a ``Front``. So is a moment at which the queue is empty, for all priorities.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from inferfleet.schemas.job import JobState
from inferfleet.schemas.journal import QueuedEntry
from inferfleet.schemas.names import (
    held_key,
    job_key,
    journal_key,
    open_key,
    request_key,
    sweep_key,
)
from inferfleet.wire.redis import job_scripts, pool_scripts
from inferfleet.wire.redis.job_listing import BEGINNING, Entry, unfinished
from inferfleet.wire.redis.journal_lines import encoded
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.script import Argument

FORGOTTEN_AFTER_S = 24 * 3600
"""How long a pool without workers remembers its fronts."""


class Front(NamedTuple):
    """At ``delivered_ms`` the queue had no job of a priority that entered the index before ``entered_ms``."""

    entered_ms: int
    delivered_ms: int


class SweepTurn(NamedTuple):
    """What a worker needs to know to sweep: by priority, the front, and where the last sweep stopped."""

    fronts: Mapping[int, Front]
    cursors: Mapping[int, int]


class OpenJob(NamedTuple):
    """An entry of the index of unfinished jobs.

    ``published_ms`` is when the job was submitted, or last published again; ``held_ms`` is until when its
    message counts as held by a worker, 0 if by none.
    """

    id: str
    published_ms: int
    held_ms: int


class Marks(NamedTuple):
    """What a record says about who has its job, as it is in Redis; ``""`` for what it does not say."""

    state: str
    attempt: str
    lease: str
    republished: str
    lease_ms: str
    session: str
    finished_at: str
    promoted: str
    pool: str = ""
    priority: str = ""

    @property
    def over(self) -> bool:
        """Whether the job has ended, or has no record."""
        return not self.state or JobState(self.state).terminal

    def elsewhere(self, *, pool: str, priority: int) -> bool:
        """Whether the job is in another place of the index: it has moved, or was submitted twice."""
        return self.pool not in ("", pool) or self.priority not in ("", str(priority))

    @property
    def had_until_ms(self) -> int:
        """Until when somebody had the job; at least until it was last published again."""
        begun = int(self.attempt or 0) > 0
        leased = int(self.lease or 0) + int(self.lease_ms or 0) if begun else 0
        return max(leased, int(self.republished or 0))


class Revival(StrEnum):
    """The reply to a worker that wants to publish a job again."""

    REVIVED = "revived"
    """It has to publish the job."""

    CHANGED = "changed"
    """The job has progressed since its marks were read."""

    UNKEPT = "unkept"
    """Redis does not have the job's request."""


class Revived(NamedTuple):
    """The message to publish again: its body, and the client that waits for the job."""

    status: Revival
    body: bytes
    reply_to: str


class LostMessages:
    """Finds the jobs of one pool that have lost their messages."""

    def __init__(self, pipeline: CommandPipeline, *, pool: str) -> None:
        self._pipeline = pipeline
        self._pool = pool
        self._clock = pipeline.clock

    @property
    def now_ms(self) -> int:
        """The time by Redis' clock, in Unix milliseconds."""
        return self._clock.now_ms()

    async def report(
        self,
        *,
        sweeper: str,
        lease_s: float,
        held: Iterable[str],
        held_s: float,
        fronts: Mapping[int, Front],
    ) -> SweepTurn | None:
        """Report the messages that a worker holds, and its fronts. Return its turn to sweep, if it is due.

        ``sweeper`` is unique to this call. Nobody else gets the turn for ``lease_s``.
        """
        answer: Any = await self._pipeline.enqueue(
            *pool_scripts.sweep(
                sweep_key(self._pool),
                held_key(self._pool),
                *held,
                sweeper=sweeper,
                lease_ms=int(lease_s * 1000),
                held_ms=int(held_s * 1000),
                fronts="".join(
                    f"{priority} {front.entered_ms} {front.delivered_ms};"
                    for priority, front in fronts.items()
                ),
                ttl_s=FORGOTTEN_AFTER_S,
            )
        )
        due, *stored = answer
        if not due:
            return None
        return SweepTurn(
            {number: Front(*map(int, front.split())) for number, front in enumerate(stored[::2]) if front},
            {number: int(cursor) for number, cursor in enumerate(stored[1::2]) if cursor},
        )

    async def stopped_at(self, priority: int, cursor: int | None) -> None:
        """Note where a sweep has stopped in a priority; ``None`` if it came to the end."""
        field = f"cursor:{priority}"
        if cursor is None:
            await self._pipeline.execute("HDEL", sweep_key(self._pool), field)
        else:
            await self._pipeline.execute("HSET", sweep_key(self._pool), field, cursor)

    async def open_jobs(self, priority: int, *, from_ms: int, below_ms: int, limit: int) -> list[OpenJob]:
        """Read the unfinished jobs of a priority that were published in this time, the oldest first."""
        keys = (open_key(self._pool, priority), held_key(self._pool))
        found: Any = await self._pipeline.enqueue(
            *pool_scripts.open_range(*keys, from_ms=from_ms, below_ms=below_ms, limit=limit)
        )
        return [
            OpenJob(job_id.decode(), int(float(published)), int(float(held or 0)))
            for job_id, published, held in zip(found[::3], found[1::3], found[2::3], strict=True)
        ]

    def unfinished(
        self,
        priority: int,
        *,
        behind: Entry = BEGINNING,
        until_ms: int | None = None,
        page_size: int | None = None,
    ) -> AsyncGenerator[list[Entry]]:
        """Yield pages of the unfinished jobs of a priority, oldest first, as ``job_listing.unfinished``."""
        return unfinished(
            self._pipeline, self._pool, priority, behind=behind, until_ms=until_ms, page_size=page_size
        )

    async def marks(self, job_ids: Iterable[str]) -> list[Marks]:
        """Read what the records of jobs say about who has them."""
        found = await asyncio.gather(
            *(self._pipeline.enqueue("HMGET", job_key(job_id), *Marks._fields) for job_id in job_ids)
        )
        return [Marks(*((value or b"").decode() for value in fields)) for fields in found]

    async def is_held(self, job_id: str) -> bool:
        """Return whether a worker has reported lately that it holds a job's message."""
        until: Any = await self._pipeline.execute("ZSCORE", held_key(self._pool), job_id)
        return until is not None and float(until) > self.now_ms

    async def has_request(self, job_id: str) -> bool:
        """Return whether Redis has a job's request."""
        return bool(await self._pipeline.execute("EXISTS", request_key(job_id)))

    async def forget(self, priority: int, jobs: Sequence[OpenJob]) -> None:
        """Remove jobs that are over from the index, unless they have entered it again since."""
        if jobs:
            await asyncio.gather(
                self.displace(priority, jobs),
                # A worker of version 0.2 does not delete them.
                *(
                    self._pipeline.enqueue(*job_scripts.drop_request(job_key(job.id), request_key(job.id)))
                    for job in jobs
                ),
            )

    async def displace(self, priority: int, jobs: Sequence[OpenJob]) -> None:
        """Remove jobs that are elsewhere in the index, unless they have entered it here again since."""
        entries: list[Argument] = []
        for job in jobs:
            entries += (job.id, job.published_ms)
        if entries:
            key = open_key(self._pool, priority)
            await self._pipeline.enqueue(*pool_scripts.forget_open(key, *entries))

    async def revive(
        self, job_id: str, marks: Marks, *, priority: int, call: str, promoted: bool = False
    ) -> Revived:
        """Let a job be published again. ``call`` is unique to this call.

        It has lost its message, or is ``promoted``. From now on it counts as published now, and its producer
        cannot take it back.
        """
        entry = QueuedEntry(
            at=self._clock.now(),
            attempt=int(marks.attempt or 0),
            republished=None if promoted else True,
            promoted=True if promoted else None,
        )
        (status, body, reply_to) = await self._pipeline.enqueue(
            *job_scripts.revive(
                job_key(job_id),
                journal_key(job_id),
                request_key(job_id),
                seen=f"{marks.state} {marks.attempt} {marks.lease} {marks.republished}",
                call=call,
                queued_entry=encoded(entry),
                promoted=int(promoted),
            )
        )
        revived = Revived(Revival(status.decode()), body, reply_to.decode())
        if revived.status is Revival.REVIVED:
            await self._pipeline.execute(
                "ZADD", open_key(self._pool, priority), "XX", self._clock.now_ms(), job_id
            )
        return revived
