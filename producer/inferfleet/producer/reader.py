"""Serves all waits and streams of a client with one blocked read.

Redis wakes the read when a job of this client ends (a line in its reply stream) or when a followed journal
grows. To follow another journal, the client wakes the read by adding a line to its own reply stream. So ten
thousand waits cost one connection and no polling.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from inferfleet.producer.journal_view import BEGINNING, JournalLine, JournalView, is_before
from inferfleet.schemas.errors import (
    InferfleetError,
    JobDataLostError,
    JobNotFoundError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.journal import FinishedEntry
from inferfleet.schemas.names import journal_key, reply_key
from inferfleet.schemas.result import Result
from inferfleet.wire.outage import Outage
from inferfleet.wire.redis import refusals
from inferfleet.wire.redis.journal_lines import parse_line
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.replies import wake
from inferfleet.wire.redis.streams import NO_LINE, BlockedReader, Line, last_lines

logger = logging.getLogger(__name__)

RECORD_GRACE_S = 300.0
"""How long a record may be missing before a wait for it fails. When Redis has lost its data, the worker that
runs a job writes its record again; a job that waits in RabbitMQ gets a new record when a worker starts it."""

PAUSE_S = 0.05
PAUSE_STEPS = 5
"""The pause before a failed read is repeated, and how often that pause doubles."""


class _Replaced:
    """The journal that a follower knows is gone; there may be another one, with lower ids."""


class Reader:
    """Reads the client's reply stream and all followed journals, through one blocked ``XREAD``.

    Each waiting caller parses its own lines: a line that cannot be parsed is an error only for that caller.
    """

    def __init__(
        self,
        *,
        blocked: BlockedReader,
        pipeline: CommandPipeline,
        records: JobRecords,
        client_id: str,
        state_check_interval_s: float,
        on_ends: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._blocked = blocked
        self._pipeline = pipeline
        self._records = records
        self._client_id = client_id
        self._reply_key = reply_key(client_id).encode()
        self._state_check_interval_s = state_check_interval_s
        self._on_ends = on_ends
        self._unchecked = Outage()
        self._closed = False
        self._waiters: defaultdict[str, set[asyncio.Future[bytes]]] = defaultdict(set)
        self._followers: dict[bytes, set[asyncio.Queue[Line | _Replaced | InferfleetError]]] = {}
        self._followed: dict[str, bytes] = {}
        self._positions: dict[bytes, bytes] = {}
        self._missing_since: dict[str, float] = {}
        """Jobs whose record was missing at the last check, with the time when it was first missing."""

    async def wait(self, job_id: str) -> Result:
        """Wait for a job's result.

        Raises:
            JobNotFoundError: The record of the job does not exist, or has disappeared.
            JobDataLostError: The job has ended, but Redis no longer has its result.

        """
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiters[job_id].add(waiter)
        try:
            # The job may have ended before this read; from here on its reply line cannot be missed.
            reply_to, result = await self._records.peek(job_id)
            if result is not None:
                return Result.model_validate_json(result)
            if reply_to == self._client_id:
                return Result.model_validate_json(await waiter)
            # This is another client's job, so follow its journal to the end.
            async with aclosing(self.follow(job_id, after=BEGINNING)) as lines:
                async for _ in lines:
                    if waiter.done():
                        break
            return (await self._records.get(job_id)).result or Result.model_validate_json(await waiter)
        finally:
            self._waiters[job_id].discard(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]
            # Retrieve the error, if the journal of another client's job has reported the loss first.
            _ = waiter.done() and not waiter.cancelled() and waiter.exception()

    async def follow(self, job_id: str, *, after: str, ended: bool = False) -> AsyncGenerator[JournalLine]:
        """Read a job's journal, from behind the line ``after`` to its last line.

        With ``ended`` the job is known to have ended, so the journal grows no more.

        Raises:
            JobNotFoundError: The record of the job is gone.
            JobDataLostError: Tokens or the last line are missing.

        """
        key = journal_key(job_id).encode()
        view = JournalView.at(after)
        # A separate read gets the existing lines; the shared read gets the later ones.
        arriving: asyncio.Queue[Line | _Replaced | InferfleetError] = asyncio.Queue()
        self._followers.setdefault(key, set()).add(arriving)
        self._followed[job_id] = key
        try:
            present = await self._present(job_id, view)
            for one in present:
                for line in await self._see(job_id, view, one):
                    yield line
                    if isinstance(line.entry, FinishedEntry):
                        return
            if not present and await self._ended(job_id, view):
                return
            if ended:
                raise JobDataLostError(job_id, missing="journal")
            if key not in self._positions:
                self._positions[key] = view.line_id
                await wake(self._pipeline, self._client_id)
            while True:
                arrived = await arriving.get()
                match arrived:
                    case JobDataLostError():
                        # The job has ended. If the journal has all remaining lines, none is lost.
                        behind = await self._records.lines(job_id, after=view.line_id)
                    case InferfleetError():
                        raise arrived
                    case _Replaced():
                        view.begin_anew()
                        behind = await self._records.lines(job_id)
                    case _:
                        behind = [arrived]
                for one in behind:
                    for line in await self._see(job_id, view, one):
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
        """Find the end of the reply stream. The lines of jobs that are submitted later come behind it."""
        (last,) = await last_lines(self._pipeline, [self._reply_key])
        self._positions[self._reply_key] = last or NO_LINE

    async def run(self) -> None:
        """Read until cancelled. Repeat the read after an error that passes; other errors fail all waits."""
        failures = 0
        while True:
            try:
                await self._take(await self._blocked.read(self._positions))
            except Exception as error:
                failures += 1
                steps = min(failures, PAUSE_STEPS)
                if failures == 2:
                    # The first error may come from an idle connection that was closed.
                    logger.warning("cannot read replies; retrying (%s)", refusals.reason(error))
                self._tell_unless_it_passes(error)
                await asyncio.sleep(PAUSE_S * 2.0**steps * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            else:
                if failures > 1:
                    logger.info("reading replies works again")
                failures = 0

    async def poll_states(self) -> None:
        """Read the records themselves from time to time: a worker may die between commit and reply line.

        Redis may also have lost the record of a job that a caller waits for. Ends once this is closed.
        """
        while not self._closed:
            await asyncio.sleep(self._state_check_interval_s)
            try:
                await self._pipeline.learn_time()
                if self._heeded:
                    await self._check()
            except Exception as error:
                if self._closed or not self._heeded:
                    continue
                if self._unchecked.began():
                    logger.warning("cannot check waiting jobs (%s)", error)
                self._tell_unless_it_passes(error)
            else:
                if (lasted_s := self._unchecked.ended()) is not None:
                    logger.warning("checking waiting jobs works again after %.1f s", lasted_s)

    @property
    def _heeded(self) -> bool:
        """Whether anybody waits for a job, reads a journal, or is told of ends."""
        return bool(self._waiters or self._followed or self._on_ends)

    def close(self) -> None:
        """Fail all waits and streams that are still open."""
        self._closed = True
        self._tell("the client was closed while it waited for a job")

    def _tell_unless_it_passes(self, error: Exception) -> None:
        told: InferfleetError
        if refusals.is_refusal(error):
            told = refusals.refused(error, what="XREAD")
        elif isinstance(error, (ServiceUnreachableError, ServiceRefusedError)):
            told = error
        elif refusals.is_trouble(error):
            return
        else:
            logger.error("cannot read replies", exc_info=error)
            told = ServiceRefusedError(f"cannot read replies: {error!r}")
        if isinstance(told, ServiceRefusedError) and not told.passing:
            self._tell(str(told), ServiceRefusedError)

    def _tell(self, message: str, kind: type[InferfleetError] = ServiceUnreachableError) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(kind(message))
        for followers in self._followers.values():
            for follower in followers:
                follower.put_nowait(kind(message))

    async def _take(self, answer: list[tuple[bytes, list[Line]]]) -> None:
        for key, lines in answer:
            if key == self._reply_key:
                finished = [
                    fields[b"job"].decode(errors="replace") for _, fields in lines if b"job" in fields
                ]
                await self._resolve([job_id for job_id in finished if job_id in self._waiters])
                if self._on_ends is not None:
                    self._on_ends(finished)
                # Only now: if the results cannot be read, these lines are read again.
                self._positions[key] = lines[-1][0]
            elif key in self._positions:
                self._positions[key] = lines[-1][0]
                for follower in self._followers.get(key, ()):
                    for line in lines:
                        follower.put_nowait(line)

    async def _resolve(self, job_ids: list[str]) -> None:
        """Give waiting callers the results of jobs that have ended according to a reply line."""
        results = await self._hand_out(job_ids)
        if len(results) < len(job_ids):
            await self._look_at([job_id for job_id in job_ids if job_id not in results])

    async def _check(self) -> None:
        await self._look_for_other_streams()
        gone = await self._look_at([*self._waiters, *self._followed])
        now = time.monotonic()
        self._missing_since = {job_id: self._missing_since.get(job_id, now) for job_id in gone}
        for job_id, since in self._missing_since.items():
            if now - since >= RECORD_GRACE_S:
                lost = JobNotFoundError(job_id)
                self._fail(job_id, waiting=lost, reading=lost)

    async def _look_for_other_streams(self) -> None:
        """Read streams that Redis has lost from their beginning, because new lines may have lower ids.

        This happens if Redis' clock is behind the previous one, for example after a failover.
        """
        positions = dict(self._positions)
        lasts = await last_lines(self._pipeline, positions)
        for (key, position), last in zip(positions.items(), lasts, strict=True):
            lost = position != NO_LINE if not last else is_before(last, position)
            if lost and self._positions.get(key) == position:
                self._positions[key] = NO_LINE
                for follower in self._followers.get(key, ()):
                    follower.put_nowait(_Replaced())

    async def _present(self, job_id: str, view: JournalView) -> list[Line]:
        """Return the lines behind the view's position; all lines, if that position is in a lost journal."""
        lines = await self._records.lines(job_id, after=view.line_id)
        if not lines and view.line_id != NO_LINE:
            last = await self._records.last_line(job_id)
            if last is None or view.is_beyond(last[0]):
                view.begin_anew()
                return await self._records.lines(job_id)
        return lines

    async def _see(self, job_id: str, view: JournalView, line: Line) -> list[JournalLine]:
        """Return what the reader should see of one more line.

        Raises:
            JobDataLostError: Tokens before it are missing.

        """
        line_id, entry = line[0], parse_line(line[1])
        if view.is_past(line_id) or not view.lacks(entry):
            return view.see(line_id, entry)
        # The tokens may be in a new journal with lower ids.
        view.begin_anew()
        seen: list[JournalLine] = []
        for line_id, fields in await self._records.lines(job_id):
            entry = parse_line(fields)
            if view.lacks(entry):
                raise JobDataLostError(job_id, missing="journal")
            seen += view.see(line_id, entry)
        return seen

    async def _look_at(self, job_ids: list[str]) -> set[str]:
        """Give callers their results, or an error where one is gone. Return the jobs without a record."""
        states = await self._records.states(job_ids)
        # After the states: a job whose state is terminal has had a result.
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
        """Return whether the reader has seen the last line of a complete journal."""
        last = await self._records.last_line(job_id)
        return last is not None and isinstance(last[1], FinishedEntry) and view.is_past(last[0])
