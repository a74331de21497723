"""The dead letters: look at them, submit them again, or throw them away.

A job among them is ``failed`` for good; a terminal state never changes. So replaying one submits its
request as a new job, which names the old one in its metadata.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from aio_pika.exceptions import ChannelNotFoundEntity

from inferfleet.schemas import names
from inferfleet.schemas.dead_letter import DeadLetter
from inferfleet.schemas.errors import InvalidJobError, UnknownPoolError
from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import Job, new_job_id
from inferfleet.schemas.message import letter_id, read_job
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.amqp import Connection, connection_errors, declare_dead_letters, open_amqp
from inferfleet.wire.reading import QueueReader, ReadMessage

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
                        # The one it was in, if it says none itself.
                        **({} if "pool" in letter.job.model_fields_set else {"pool": pool}),
                    }
                )
                jobs.append(await self._submit(again))
                queue.ack(message)
        return jobs

    async def purge(self, pool: str, *, ids: Collection[str] = (), limit: int = 1_000_000) -> int:
        """Throw dead letters away; without ``ids`` all of them. Returns how many.

        Raises:
            UnknownPoolError: The pool has no dead-letter queue.

        """
        async with self._queue(pool) as queue:
            if not ids:
                return await queue.purge()
            count = 0
            async for message, _ in _letters(queue, pool, ids, limit):
                queue.ack(message)
                count += 1
            return count

    @asynccontextmanager
    async def _queue(self, pool: str) -> AsyncGenerator[QueueReader]:
        """The pool's dead-letter queue. What was read and not acked goes back when the block ends.

        One that was deleted while the pool has its queue of jobs is declared again, empty.
        """
        async with open_amqp(
            self._settings.amqp_url,
            timeout_s=self._settings.connect_timeout_s,
            name=f"{self._settings.client_id} (dead letters)",
        ) as connection:
            with connection_errors(self._settings.amqp_url):
                if not await _exists(connection, names.dead_queue(pool)):
                    if not await _exists(connection, names.job_queue(pool)):
                        raise UnknownPoolError(f"there is no pool {pool!r}: it has no dead-letter queue")
                    async with connection.channel() as declaring:
                        await declare_dead_letters(declaring, pool, self._settings)
                channel = await connection.channel(publisher_confirms=False)
                queue = await channel.declare_queue(names.dead_queue(pool), passive=True)
            yield QueueReader(connection.stream, await channel.get_underlay_channel(), queue)


async def _exists(connection: Connection, queue: str) -> bool:
    try:
        async with connection.channel() as channel:
            await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    return True


async def _letters(
    queue: QueueReader, pool: str, ids: Collection[str], limit: int
) -> AsyncGenerator[tuple[ReadMessage, DeadLetter]]:
    """Read what is in the queue now, or until all the wanted ones were found.

    What comes in meanwhile is left: a job that is replayed and fails at once would never let this end.
    """
    missing = set(ids)
    for _ in range(min(limit, queue.count)):
        message = await queue.get()
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


def _letter(message: ReadMessage, pool: str) -> DeadLetter:
    """Read a dead letter. RabbitMQ itself puts messages here, by a policy, and other clients may."""
    properties = message.properties
    headers: Mapping[str, Any] = properties.get("headers", {})
    try:
        job = read_job(message.body, message_type=properties.get("message_type", ""))
    except InvalidJobError:
        job = None
    code, why = headers.get(names.HEADER_CODE), headers.get(names.HEADER_MESSAGE)
    attempts, worker_id = headers.get(names.HEADER_ATTEMPTS), headers.get(names.HEADER_WORKER)
    return DeadLetter(
        message_id=letter_id(message.body, properties.get("message_id")),
        pool=pool,
        code=FailureCode(code) if code in list(FailureCode) else FailureCode.INTERNAL,
        message=why if isinstance(why, str) else "no reason was recorded",
        attempts=attempts if isinstance(attempts, int) and attempts >= 0 else 0,
        worker_id=worker_id if isinstance(worker_id, str) else None,
        died_at=_moment(headers.get(names.HEADER_DIED_AT)),
        job=job,
    )


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None
