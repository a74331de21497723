"""Reads, replays and deletes dead letters.

A dead-lettered job is ``failed`` for good, because a terminal state never changes. So replaying it submits
its request as a new job, which names the old job in its metadata.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from aiormq.exceptions import ChannelLockedResource

from inferfleet.producer.job_making import check_pool
from inferfleet.schemas import names
from inferfleet.schemas.dead_letter import DeadLetter
from inferfleet.schemas.errors import (
    ClientUnusableError,
    DeadLetterNotFoundError,
    DeadLettersBusyError,
    DeadLettersGoneError,
    InferfleetError,
    InvalidJobError,
    PartialReplayError,
    QueueFullError,
    ServiceRefusedError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import MAX_METADATA, Job, new_job_id
from inferfleet.schemas.message import letter_id, read_job
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.rabbitmq.connection import Connection, open_amqp
from inferfleet.wire.rabbitmq.errors import connection_errors
from inferfleet.wire.rabbitmq.queue_reader import QueueReader, ReadMessage
from inferfleet.wire.rabbitmq.topology import declare_dead_letters

REPLAYED_FROM = "replayed_from"
"""The metadata key under which a replayed job names the dead-lettered one."""

BUSY_S: Final = 10.0
"""How long a call waits for another client that has the letters."""

_BUSY_POLL_S: Final = 0.1

_STOPPING: Final = (ServiceUnreachableError, ServiceRefusedError, QueueFullError, ClientUnusableError)
"""What would happen to the next letter, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Conditions on dead-lettered jobs, all of which have to hold. Those that are not given always hold.

    ``message`` is a part of the failure's message, which names the last attempt's code. Messages that are not
    jobs meet none.
    """

    message: str | None = None
    priority: int | None = None
    session_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def admits(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter meets the conditions."""
        job = letter.job
        return (
            job is not None
            and (self.message is None or self.message in letter.message)
            and self.priority in {None, job.priority}
            and self.session_id in {None, job.session_id}
            and self.metadata.items() <= job.metadata.items()
        )


class DeadLetters:
    """The dead letters of all pools. Each call opens its own connection.

    A letter that one client has read is invisible to others until that client has finished. So one client at
    a time has the letters of a pool: each call waits for the others, and raises ``DeadLettersBusyError``
    after ``BUSY_S``.
    """

    def __init__(self, settings: ProducerSettings, submit: Callable[[Job], Awaitable[Job]]) -> None:
        self._settings = settings
        self._submit = submit

    async def read(
        self, pool: str, *, ids: Collection[str] | None = None, limit: int = 1000
    ) -> list[DeadLetter]:
        """Read a pool's dead letters, oldest first, and leave them in their queue.

        Raises:
            InvalidJobError: No pool may have this name.
            UnknownPoolError: The pool has no dead-letter queue.
            DeadLetterNotFoundError: The queue has no dead letter with one of the ``ids``.

        """
        wanted = None if ids is None else _wanted(ids)
        async with self._queue(pool) as queue:
            if wanted is not None:
                return [letter for _, letter in await _named(queue, pool, wanted)]
            return [letter async for _, letter in _letters(queue, pool, limit)]

    async def count(self, pool: str, *, where: LetterFilter | None = None) -> int:
        """Count a pool's dead letters, or those that meet conditions.

        Raises:
            InvalidJobError: No pool may have this name.
            UnknownPoolError: The pool has no dead-letter queue.

        """
        async with self._queue(pool) as queue:
            if where is None:
                return queue.count
            number = 0
            async for _, letter in _letters(queue, pool):
                number += where.admits(letter)
            return number

    async def replay(
        self,
        pool: str,
        *,
        ids: Collection[str] | None = None,
        everything: bool = False,
        oldest: int | None = None,
        where: LetterFilter | None = None,
    ) -> list[Job]:
        """Submit dead letters again as new jobs, and return those jobs.

        Give exactly one of ``ids``, ``everything``, ``where``, or ``oldest``, the number of letters to take
        from the front. Each dead letter is removed once its new job is accepted; if the connection breaks
        first, it stays, and replaying it again gives the same job. Messages that are not jobs stay, and so do
        letters whose job is refused.

        Raises:
            PartialReplayError: Some jobs were refused, or a service failed after others were submitted.
            InvalidJobError: No pool may have this name, not exactly one of the four was given, an id is
                empty, ``where`` has no condition, or an id belongs to a message that is not a job.
            UnknownPoolError: The pool has no dead-letter queue.
            DeadLetterNotFoundError: The queue has no dead letter with one of the ids; nothing was submitted.
            DeadLettersGoneError: The queue has fewer than ``oldest``; nothing was submitted.

        """
        wanted = _meant(ids, everything=everything, oldest=oldest, where=where)
        async with self._queue(pool) as queue:
            if wanted is None:
                _require_all_there(queue, pool, oldest)
                return await self._replay(pool, queue, _letters(queue, pool, oldest), where)
            named = await _named(queue, pool, wanted)
            if no_jobs := [letter.message_id for _, letter in named if letter.job is None]:
                raise InvalidJobError(
                    f"{', '.join(map(repr, no_jobs))}: not a job, so it cannot be submitted again. "
                    "Nothing was submitted"
                )
            return await self._replay(pool, queue, _each(named), None)

    async def purge(
        self,
        pool: str,
        *,
        ids: Collection[str] | None = None,
        everything: bool = False,
        oldest: int | None = None,
    ) -> int:
        """Delete dead letters, and return how many were deleted.

        Give exactly one of ``ids``, ``everything``, or ``oldest``, the number of letters to take from the
        front. A caller that has counted the letters gives ``oldest``: then letters that have arrived since
        stay, unless somebody else has removed as many from the front.

        Raises:
            InvalidJobError: No pool may have this name, not exactly one of the three was given, or an id is
                empty.
            UnknownPoolError: The pool has no dead-letter queue.
            DeadLetterNotFoundError: The queue has no dead letter with one of the ids; nothing was deleted.
            DeadLettersGoneError: The queue has fewer than ``oldest``; nothing was deleted.
            ServiceUnreachableError: The connection broke: all letters, or some, may be there.

        """
        wanted = _meant(ids, everything=everything, oldest=oldest)
        async with self._queue(pool) as queue:
            if everything:
                return await queue.purge()
            if wanted is None:
                _require_all_there(queue, pool, oldest)
                messages = [message async for message, _ in _letters(queue, pool, oldest)]
            else:
                messages = [message for message, _ in await _named(queue, pool, wanted)]
            for message in messages:
                queue.ack(message)
            with connection_errors(self._settings.amqp_url):
                await queue.acked()
            return len(messages)

    async def _replay(
        self,
        pool: str,
        queue: QueueReader,
        letters: AsyncGenerator[tuple[ReadMessage, DeadLetter]],
        where: LetterFilter | None,
    ) -> list[Job]:
        jobs: list[Job] = []
        refused: dict[str, InferfleetError] = {}
        try:
            async with aclosing(letters):
                async for message, letter in letters:
                    if letter.job is None or not (where is None or where.admits(letter)):
                        continue
                    try:
                        jobs.append(await self._again(pool, queue, message, letter.job))
                    except _STOPPING:
                        raise
                    except InferfleetError as error:
                        refused[letter.message_id] = error
        except _STOPPING as error:
            if not jobs and not refused:
                raise
            raise PartialReplayError(jobs=jobs, refused=refused, stopped=error) from error
        if refused:
            raise PartialReplayError(jobs=jobs, refused=refused)
        return jobs

    async def _again(self, pool: str, queue: QueueReader, message: ReadMessage, job: Job) -> Job:
        metadata = {**job.metadata, REPLAYED_FROM: job.id}
        again = job.model_copy(
            update={
                "id": new_job_id(),
                # A job with all the metadata that it may have keeps just that.
                "metadata": metadata if len(metadata) <= MAX_METADATA else job.metadata,
                # The old key belongs to the old job; the new one makes a repeated replay harmless.
                "idempotency_key": f"replay:{job.id}",
                "expires_at": None,
                "not_before": None,
                "after": None,
                # The pool whose dead letter it is, if the job names none.
                **({} if "pool" in job.model_fields_set else {"pool": pool}),
            }
        )
        accepted = await self._submit(again)
        queue.ack(message)
        return accepted

    @asynccontextmanager
    async def _queue(self, pool: str) -> AsyncGenerator[QueueReader]:
        """Open the pool's dead-letter queue. Letters that were read and not acked return to it at the end.

        If the dead-letter queue was deleted but the pool's job queue exists, declare it again, empty.
        """
        check_pool(pool)
        async with open_amqp(
            self._settings.amqp_url,
            timeout_s=self._settings.connect_timeout_s,
            name=f"{self._settings.client_id} (dead letters)",
        ) as connection:
            with connection_errors(self._settings.amqp_url):
                await _lock(connection, pool)
                if not await _exists(connection, names.dead_queue(pool)):
                    if not await _exists(connection, names.job_queue(pool)):
                        raise UnknownPoolError(f"there is no pool {pool!r}: it has no dead-letter queue")
                    async with connection.channel() as declaring:
                        await declare_dead_letters(declaring, pool, self._settings)
                channel = await connection.channel(publisher_confirms=False)
                queue = await channel.declare_queue(names.dead_queue(pool), passive=True)
            try:
                yield QueueReader(connection.stream, await channel.get_underlay_channel(), queue)
            finally:
                # The letters are back when this returns; only then does the lock end, with the connection.
                with suppress(AMQPError, RuntimeError, OSError):
                    async with asyncio.timeout(self._settings.connect_timeout_s):
                        await channel.close()


async def _lock(connection: Connection, pool: str) -> None:
    """Wait until no other client has the pool's letters, and keep others away while the connection lasts."""
    give_up_at = time.monotonic() + BUSY_S
    while True:
        try:
            async with connection.channel() as channel:
                await channel.declare_queue(names.dead_lock(pool), exclusive=True)
        except ChannelLockedResource:
            if time.monotonic() > give_up_at:
                raise DeadLettersBusyError(pool) from None
            await asyncio.sleep(_BUSY_POLL_S)
        else:
            return


async def _exists(connection: Connection, queue: str) -> bool:
    try:
        async with connection.channel() as channel:
            await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    return True


def _meant(
    ids: Collection[str] | None, *, everything: bool, oldest: int | None, where: LetterFilter | None = None
) -> frozenset[str] | None:
    """Return the given ids; ``None`` if conditions, a number, or explicitly everything, was given."""
    if (ids is not None) + everything + (oldest is not None) + (where is not None) != 1:
        raise InvalidJobError(
            "ids: give the ids of dead letters, everything=True, conditions, or how many of the oldest; only "
            "one of these"
        )
    if where == LetterFilter():
        raise InvalidJobError("where: give at least one condition on the dead letters")
    return None if ids is None else _wanted(ids)


def _require_all_there(queue: QueueReader, pool: str, oldest: int | None) -> None:
    """Refuse to take letters that have arrived in place of those that were counted."""
    if oldest is not None and queue.count < oldest:
        raise DeadLettersGoneError(pool, counted=oldest, present=queue.count)


def _wanted(ids: Collection[str]) -> frozenset[str]:
    if isinstance(ids, str) or not all(ids):
        raise InvalidJobError("ids: must be a collection of ids, none of them empty")
    return frozenset(ids)


async def _letters(
    queue: QueueReader, pool: str, limit: int | None = None
) -> AsyncGenerator[tuple[ReadMessage, DeadLetter]]:
    """Read the letters that are in the queue now, at most ``limit``.

    Letters that arrive meanwhile are left, because a replayed job that fails at once would make this endless.
    """
    for _ in range(queue.count if limit is None else min(limit, queue.count)):
        message = await queue.get()
        if message is None:
            return
        yield message, _letter(message, pool)


async def _each(
    letters: Iterable[tuple[ReadMessage, DeadLetter]],
) -> AsyncGenerator[tuple[ReadMessage, DeadLetter]]:
    for pair in letters:
        yield pair


async def _named(queue: QueueReader, pool: str, ids: frozenset[str]) -> list[tuple[ReadMessage, DeadLetter]]:
    """Find every letter with one of these ids. After a crash two letters may have the same id."""
    if not ids:
        return []
    found = [pair async for pair in _letters(queue, pool) if pair[1].message_id in ids]
    if missing := sorted(ids - {letter.message_id for _, letter in found}):
        raise DeadLetterNotFoundError(pool, missing)
    return found


def _letter(message: ReadMessage, pool: str) -> DeadLetter:
    """Read a dead letter. It may come from a worker, from another client, or from RabbitMQ by a policy."""
    properties = message.properties
    headers: Mapping[str, Any] = properties.get("headers", {})
    try:
        job = read_job(message.body, message_type=properties.get("message_type", ""), headers=headers)
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
