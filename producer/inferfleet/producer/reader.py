"""One blocked read for everything a client waits for.

Redis wakes the read when a job of this client finishes (a line in its reply stream) or when a journal
that somebody follows grows. A new subscription joins by waking the read with a line of its own. So ten
thousand waits cost one connection and no polling.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import RedisError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from inferfleet.producer.journal_view import BEGINNING, JournalLine, JournalView
from inferfleet.schemas.errors import (
    InferfleetError,
    JobDataLostError,
    JobNotFoundError,
    ServiceUnreachableError,
)
from inferfleet.schemas.journal import FinishedEntry
from inferfleet.schemas.names import journal_key, reply_key
from inferfleet.schemas.result import Result
from inferfleet.wire.journal_lines import parse_line
from inferfleet.wire.outage import Outage
from inferfleet.wire.pipeline import CommandPipeline
from inferfleet.wire.records import JobRecords
from inferfleet.wire.replies import REPLY_STREAM_LENGTH, REPLY_TTL_S

logger = logging.getLogger(__name__)

BLOCK_S = 5.0
"""How long one read blocks at most, so that a dead connection is noticed."""

Line = tuple[bytes, dict[bytes, bytes]]


class Reader:
    """Reads the client's reply stream and all journals that are followed, through one blocked ``XREAD``.

    What it reads is understood by whoever asked for it: a line that cannot be read is an error for them,
    and for nobody else.
    """

    def __init__(
        self,
        *,
        blocking_client: aioredis.Redis,
        pipeline: CommandPipeline,
        records: JobRecords,
        client_id: str,
        state_check_interval_s: float,
    ) -> None:
        self._blocking_client = blocking_client
        self._pipeline = pipeline
        self._records = records
        self._client_id = client_id
        self._reply_key = reply_key(client_id).encode()
        self._state_check_interval_s = state_check_interval_s
        self._unchecked = Outage()
        self._waiters: defaultdict[str, set[asyncio.Future[bytes]]] = defaultdict(set)
        self._followers: dict[bytes, set[asyncio.Queue[Line | InferfleetError | None]]] = {}
        self._followed: dict[str, bytes] = {}
        self._positions: dict[bytes, bytes] = {}
        self._without_record: set[str] = set()
        """Jobs whose record was missing at the last look."""

    async def wait(self, job_id: str) -> Result:
        """Wait for a job's result.

        Raises:
            JobNotFoundError: There is no record of the job, or there is none any more.
            JobDataLostError: It has ended, and its result is gone.

        """
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiters[job_id].add(waiter)
        try:
            # It may have finished before we looked; from here on its line cannot be missed.
            reply_to, result = await self._records.glance(job_id)
            if result is not None:
                return Result.model_validate_json(result)
            if reply_to == self._client_id:
                return Result.model_validate_json(await waiter)
            # Another client's job: its journal says when it is done.
            async with aclosing(self.follow(job_id, after=BEGINNING)) as lines:
                async for _ in lines:
                    if waiter.done():
                        break
            return (await self._records.get(job_id)).result or Result.model_validate_json(await waiter)
        finally:
            self._waiters[job_id].discard(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]
            # If this was another client's job, its journal may have told of the loss first.
            _ = waiter.done() and not waiter.cancelled() and waiter.exception()

    async def follow(self, job_id: str, *, after: str, ended: bool = False) -> AsyncGenerator[JournalLine]:
        """Read a job's journal, from behind the line ``after``, until its last line.

        With ``ended`` the job is known to have ended, so that nothing more will come.

        Raises:
            JobNotFoundError: The record of the job is gone.
            JobDataLostError: Tokens or the last line are missing.

        """
        key = journal_key(job_id).encode()
        view = JournalView.at(after)
        # What is there already comes from a read of our own; the shared read brings the rest.
        arriving: asyncio.Queue[Line | InferfleetError | None] = asyncio.Queue()
        self._followers.setdefault(key, set()).add(arriving)
        self._followed[job_id] = key
        try:
            present = await self._records.lines(job_id, after=view.line_id)
            for line_id, fields in present:
                for line in _see(job_id, view, (line_id, fields)):
                    yield line
                    if isinstance(line.entry, FinishedEntry):
                        return
            if not present and await self._ended(job_id, view):
                return
            if ended:
                raise JobDataLostError(job_id, missing="journal")
            if key not in self._positions:
                self._positions[key] = view.line_id
                await self._wake()
            while True:
                arrived = await arriving.get()
                match arrived:
                    case None:
                        raise ServiceUnreachableError("the client was closed while it read a journal")
                    case JobDataLostError():
                        # It has ended. If the journal has all the rest, nothing of that is lost.
                        behind = await self._records.lines(job_id, after=view.line_id)
                    case InferfleetError():
                        raise arrived
                    case _:
                        behind = [arrived]
                for one in behind:
                    for line in _see(job_id, view, one):
                        yield line
                        if isinstance(line.entry, FinishedEntry):
                            return
                if isinstance(arrived, JobDataLostError):
                    raise arrived
        finally:
            self._followers[key].discard(arriving)
            if not self._followers[key]:
                del self._followers[key], self._followed[job_id]
                self._positions.pop(key, None)

    async def start(self) -> None:
        """Find the place to read replies from. Jobs that are submitted later cannot finish before it."""
        last: Any = await self._pipeline.execute("XREVRANGE", self._reply_key, "+", "-", "COUNT", 1)
        self._positions[self._reply_key] = last[0][0] if last else b"0-0"

    async def read_for_ever(self) -> None:
        """Read until cancelled; an outage of Redis is waited out."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((RedisError, OSError)),
            wait=wait_random_exponential(multiplier=0.05, max=2.0),
        ):
            with attempt:
                while True:
                    streams: dict[Any, Any] = dict(self._positions)
                    answer: Any = await self._blocking_client.xread(
                        streams, block=int(BLOCK_S * 1000), count=1000
                    )
                    await self._take(answer or [])

    async def check_for_ever(self) -> None:
        """Look at the records themselves now and then: a worker may die between commit and reply line.

        Redis may also have lost what somebody waits for.
        """
        while True:
            await asyncio.sleep(self._state_check_interval_s)
            try:
                await self._check()
            except (RedisError, OSError) as error:
                if self._unchecked.began():
                    logger.warning("cannot check waiting jobs: Redis does not answer (%s)", error)
            else:
                if (lasted_s := self._unchecked.ended()) is not None:
                    logger.warning("waiting jobs are checked again, after %.1f s", lasted_s)

    def close(self) -> None:
        """Tell everybody who still waits that no answer will come."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(
                        ServiceUnreachableError("the client was closed while it waited for a job")
                    )
        for followers in self._followers.values():
            for follower in followers:
                follower.put_nowait(None)

    async def _take(self, answer: list[tuple[bytes, list[Line]]]) -> None:
        for key, lines in answer:
            if key == self._reply_key:
                finished = [fields[b"job"].decode() for _, fields in lines if b"job" in fields]
                await self._resolve([job_id for job_id in finished if job_id in self._waiters])
                # Only now: should the results be out of reach, these lines are read again.
                self._positions[key] = lines[-1][0]
            elif key in self._positions:
                self._positions[key] = lines[-1][0]
                for follower in self._followers.get(key, ()):
                    for line in lines:
                        follower.put_nowait(line)

    async def _resolve(self, job_ids: list[str]) -> None:
        """Hand out the results of jobs of which a line said that they have ended."""
        results = await self._hand_out(job_ids)
        if len(results) < len(job_ids):
            await self._look_at([job_id for job_id in job_ids if job_id not in results])

    async def _check(self) -> None:
        gone = await self._look_at([*self._waiters, *self._followed])
        # A worker that runs the job writes a lost record again, within its flush interval.
        for job_id in gone & self._without_record:
            lost = JobNotFoundError(job_id)
            self._fail(job_id, waiting=lost, reading=lost)
        self._without_record = gone

    async def _look_at(self, job_ids: list[str]) -> set[str]:
        """Hand out results, and tell of those that are gone. Returns the jobs without a record."""
        states = await self._records.states(job_ids)
        # Behind the states: a job that has ended has had a result.
        await self._hand_out(job_ids)
        for job_id, state in states.items():
            if state is not None and state.terminal:
                self._fail(
                    job_id,
                    waiting=JobDataLostError(job_id, missing="result"),
                    reading=JobDataLostError(job_id, missing="journal"),
                )
        return {job_id for job_id, state in states.items() if state is None}

    async def _hand_out(self, job_ids: list[str]) -> dict[str, bytes]:
        results = await self._records.results(job_ids)
        for job_id, result in results.items():
            for waiter in self._waiters.get(job_id, ()):
                if not waiter.done():
                    waiter.set_result(result)
        return results

    def _fail(self, job_id: str, *, waiting: InferfleetError, reading: InferfleetError) -> None:
        for waiter in self._waiters.get(job_id, ()):
            if not waiter.done():
                waiter.set_exception(waiting)
        for follower in self._followers.get(self._followed.get(job_id, b""), ()):
            follower.put_nowait(reading)

    async def _ended(self, job_id: str, view: JournalView) -> bool:
        """Whether the reader has seen the last line of a journal that is complete."""
        last = await self._records.last_line(job_id)
        return last is not None and isinstance(last[1], FinishedEntry) and view.is_past(last[0])

    async def _wake(self) -> None:
        await asyncio.gather(
            self._pipeline.enqueue(
                "XADD", self._reply_key, "MAXLEN", "~", REPLY_STREAM_LENGTH, "*", "wake", ""
            ),
            self._pipeline.enqueue("EXPIRE", self._reply_key, REPLY_TTL_S),
        )


def _see(job_id: str, view: JournalView, line: Line) -> list[JournalLine]:
    """What the reader should see of one more line.

    Raises:
        JobDataLostError: Tokens before it are missing.

    """
    line_id, entry = line[0], parse_line(line[1])
    if not view.is_past(line_id) and view.lacks(entry):
        raise JobDataLostError(job_id, missing="journal")
    return view.see(line_id, entry)
