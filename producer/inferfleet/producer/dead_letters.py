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
from inferfleet.schemas.errors import UnknownPoolError
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

    async def read(self, pool: str, *, ids: Collection[str] = (), limit: int = 1000) -> list[DeadLetter]:
        """Read a pool's dead letters, the oldest first, and leave them where they are.

        Raises:
            UnknownPoolError: The pool has no dead-letter queue.

        """
        async with self._queue(pool) as queue:
            return [letter async for _, letter in _letters(queue, pool, ids, limit)]

    async def replay(self, pool: str, *, ids: Collection[str] = (), limit: int = 1000) -> list[Job]:
        """Submit dead letters again as new jobs; without ``ids`` all of them. Returns the new jobs.

        Each is taken off the dead letters once its new job is accepted. Messages that are not a job stay.

        Raises:
            UnknownPoolError: The pool has no dead-letter queue.

        """
        jobs: list[Job] = []
        async with self._queue(pool) as queue:
            async for message, letter in _letters(queue, pool, ids, limit):
                if letter.job is None:
                    continue
                again = letter.job.model_copy(
                    update={
                        "id": new_job_id(),
                        "metadata": {**letter.job.metadata, REPLAYED_FROM: letter.job.id},
                        # The old key belongs to the old job; this one makes a repeated replay harmless.
                        "idempotency_key": f"replay:{letter.job.id}",
                        "expires_at": None,
                    }
                )
                jobs.append(await self._submit(again))
                await message.ack()
        return jobs

    async def purge(self, pool: str, *, ids: Collection[str] = (), limit: int = 1_000_000) -> int:
        """Throw dead letters away; without ``ids`` all of them. Returns how many.

        Raises:
            UnknownPoolError: The pool has no dead-letter queue.

        """
        async with self._queue(pool) as queue:
            if not ids:
                purged: Any = await queue.purge()
                return int(purged.message_count or 0)
            count = 0
            async for message, _ in _letters(queue, pool, ids, limit):
                await message.ack()
                count += 1
            return count

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


async def _letters(
    queue: AbstractQueue, pool: str, ids: Collection[str], limit: int
) -> AsyncGenerator[tuple[AbstractIncomingMessage, DeadLetter]]:
    """Read what is in the queue now, or until all the wanted ones were found.

    What comes in meanwhile is left: a job that is replayed and fails at once would never let this end.
    """
    missing = set(ids)
    for _ in range(min(limit, queue.declaration_result.message_count or 0)):
        message = await queue.get(fail=False)
        if message is None:
            return
        letter = _letter(message, pool)
        if not ids:
            yield message, letter
        elif letter.message_id in missing:
            missing.discard(letter.message_id)
            yield message, letter
            if not missing:
                return


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
