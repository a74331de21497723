"""The dead letters: look at them, submit them again, or throw them away.

A job among them is ``failed`` for good; a terminal state never changes. So replaying one submits its
request as a new job, which names the old one in its metadata.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity
from pydantic import ValidationError

from inferfleet.schemas import names
from inferfleet.schemas.dead_letter import DeadLetter
from inferfleet.schemas.errors import DeadLetterNotFoundError, InvalidJobError, UnknownPoolError
from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import Job, new_job_id
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.amqp import open_amqp

REPLAYED_FROM = "replayed_from"
"""The metadata key under which a replayed job names the one it repeats."""


class DeadLetters:
    """The dead letters of all pools. Each call opens a connection of its own."""

    def __init__(self, settings: ProducerSettings, submit: Callable[[Job], Awaitable[Job]]) -> None:
        self._settings = settings
        self._submit = submit

    async def read(
        self, pool: str, *, ids: Collection[str] | None = None, limit: int = 1000
    ) -> list[DeadLetter]:
        """Read a pool's dead letters, the oldest first, and leave them where they are.

        Raises:
            UnknownPoolError: The pool has no dead-letter queue.
            DeadLetterNotFoundError: It has none with one of the ``ids``.

        """
        wanted = None if ids is None else _wanted(ids)
        async with self._queue(pool) as queue:
            if wanted is not None:
                return [letter for _, letter in await _named(queue, pool, wanted)]
            return [letter async for _, letter in _letters(queue, pool, limit)]

    async def count(self, pool: str) -> int:
        """Count a pool's dead letters.

        Raises:
            UnknownPoolError: The pool has no dead-letter queue.

        """
        async with self._queue(pool) as queue:
            return queue.declaration_result.message_count or 0

    async def replay(
        self, pool: str, *, ids: Collection[str] | None = None, everything: bool = False
    ) -> list[Job]:
        """Submit dead letters again as new jobs: those with these ``ids``, or ``everything``.

        Returns the new jobs. Each dead letter is taken off once its new job is accepted. Messages that are
        not a job stay.

        Raises:
            InvalidJobError: Neither or both were given, an id is empty, or one is that of a message that is
                no job.
            UnknownPoolError: The pool has no dead-letter queue.
            DeadLetterNotFoundError: It has none with one of the ids; nothing was submitted.

        """
        wanted = _meant(ids, everything=everything)
        async with self._queue(pool) as queue:
            if wanted is None:
                return [
                    await self._again(message, letter.job)
                    async for message, letter in _letters(queue, pool)
                    if letter.job is not None
                ]
            named = await _named(queue, pool, wanted)
            if no_jobs := [letter.message_id for _, letter in named if letter.job is None]:
                raise InvalidJobError(
                    f"{', '.join(map(repr, no_jobs))}: not a job, so it cannot be submitted again. "
                    "Nothing was submitted"
                )
            return [await self._again(message, letter.job) for message, letter in named if letter.job]

    async def purge(self, pool: str, *, ids: Collection[str] | None = None, everything: bool = False) -> int:
        """Throw dead letters away: those with these ``ids``, or ``everything``. Returns how many.

        Raises:
            InvalidJobError: Neither or both were given, or an id is empty.
            UnknownPoolError: The pool has no dead-letter queue.
            DeadLetterNotFoundError: It has none with one of the ids; nothing was thrown away.

        """
        wanted = _meant(ids, everything=everything)
        async with self._queue(pool) as queue:
            if wanted is None:
                purged: Any = await queue.purge()
                return int(purged.message_count or 0)
            named = await _named(queue, pool, wanted)
            for message, _ in named:
                await message.ack()
            return len(named)

    async def _again(self, message: AbstractIncomingMessage, job: Job) -> Job:
        again = job.model_copy(
            update={
                "id": new_job_id(),
                "metadata": {**job.metadata, REPLAYED_FROM: job.id},
                # The old key belongs to the old job; this one makes a repeated replay harmless.
                "idempotency_key": f"replay:{job.id}",
                "expires_at": None,
            }
        )
        accepted = await self._submit(again)
        await message.ack()
        return accepted

    @asynccontextmanager
    async def _queue(self, pool: str) -> AsyncGenerator[AbstractQueue]:
        """The pool's dead-letter queue. What was read and not acked goes back when the block ends."""
        async with open_amqp(
            self._settings.amqp_url,
            timeout_s=self._settings.connect_timeout_s,
            name=f"{self._settings.client_id} (dead letters)",
        ) as connection:
            channel = await connection.channel()
            try:
                queue = await channel.declare_queue(names.dead_queue(pool), passive=True)
            except ChannelNotFoundEntity as error:
                raise UnknownPoolError(f"there is no pool {pool!r}: it has no dead-letter queue") from error
            yield queue


def _meant(ids: Collection[str] | None, *, everything: bool) -> frozenset[str] | None:
    """The ids that are meant; ``None`` for everything, which nobody means by leaving something out."""
    if (ids is None) is not everything:
        raise InvalidJobError("ids: give the ids of dead letters, or everything=True, and not both")
    return None if ids is None else _wanted(ids)


def _wanted(ids: Collection[str]) -> frozenset[str]:
    if isinstance(ids, str) or not all(ids):
        raise InvalidJobError("ids: must be a collection of ids, none of them empty")
    return frozenset(ids)


async def _letters(
    queue: AbstractQueue, pool: str, limit: int | None = None
) -> AsyncGenerator[tuple[AbstractIncomingMessage, DeadLetter]]:
    """Read what is in the queue now, at most ``limit``.

    What comes in meanwhile is left: a job that is replayed and fails at once would never let this end.
    """
    count = queue.declaration_result.message_count or 0
    for _ in range(count if limit is None else min(limit, count)):
        message = await queue.get(fail=False)
        if message is None:
            return
        yield message, _letter(message, pool)


async def _named(
    queue: AbstractQueue, pool: str, ids: frozenset[str]
) -> list[tuple[AbstractIncomingMessage, DeadLetter]]:
    """Find every letter with one of these ids: after a crash there may be two with the same."""
    if not ids:
        return []
    found = [pair async for pair in _letters(queue, pool) if pair[1].message_id in ids]
    if missing := sorted(ids - {letter.message_id for _, letter in found}):
        raise DeadLetterNotFoundError(pool, missing)
    return found


def _letter(message: AbstractIncomingMessage, pool: str) -> DeadLetter:
    headers = message.headers
    try:
        job = Job.model_validate_json(message.body)
    except ValidationError:
        job = None
    return DeadLetter.model_validate(
        {
            "message_id": job.id if job else message.message_id,
            "pool": pool,
            # A message that RabbitMQ itself put here, by a policy, has none of our headers.
            "code": headers.get(names.HEADER_CODE, FailureCode.INTERNAL),
            "message": headers.get(names.HEADER_MESSAGE, "no reason was recorded"),
            "attempts": headers.get(names.HEADER_ATTEMPTS, 0),
            "worker_id": headers.get(names.HEADER_WORKER),
            "died_at": headers.get(names.HEADER_DIED_AT),
            "job": job,
        }
    )
