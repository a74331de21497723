"""Runs the lines of a batch: each line becomes a job, and each job's end a line of output."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from inferfleet.producer.batch.files import ID_PREFIX
from inferfleet.producer.batch.line_ids import TRIES, line_job_id
from inferfleet.producer.batch.source import SourceLine, custom_id_of, read_prompt, read_request
from inferfleet.producer.job_making import JobOptions, make_job
from inferfleet.producer.window import Window
from inferfleet.schemas.batch import BatchLineError, BatchOutputLine, BatchResponse
from inferfleet.schemas.errors import (
    InvalidJobError,
    JobDataLostError,
    JobNotFoundError,
    PublishUnconfirmedError,
    QueueFullError,
    ServiceRefusedError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.failures import FailureCode
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.limits import MOST
from inferfleet.schemas.result import JobRecord, Result
from inferfleet.wire.tasks import cancel_and_wait

T = TypeVar("T")

End = Callable[[SourceLine, Job, int], Coroutine[Any, Any, BatchOutputLine]]
"""Brings a line to its end, by its job, once it has entered the window. It gives the place back."""

RESULT_LOST: Final = "result_lost"
"""The code of a line whose jobs have ended, but whose results Redis no longer has."""

LOSSES: Final = 2
"""How often a line may lose its result during a run; what expires between two runs does not count."""

REFUSALS_IN_DOUBT: Final = 5
"""How many refusals leave it open whether the service refuses only this job: others may be under way."""

WAIT_PAUSE_S: Final = 1.0
"""The pause before a wait for a result is repeated that an outage has ended."""


class Jobs(Protocol):
    """What a batch needs from a fleet: these methods of ``Fleet``."""

    async def submit(self, job: Job, /) -> Job:
        """Submit a job, or find it by its idempotency key."""
        ...

    async def get_many(self, jobs: Iterable[Job | str], /) -> dict[str, JobRecord | None]:
        """Read the records of jobs."""
        ...

    async def wait(self, job: str, /) -> Result:
        """Wait for the end of a job."""
        ...

    async def cancel(self, job: str, /) -> JobState:
        """Cancel a job."""
        ...


class LineWork(NamedTuple):
    """What a line asks for: the arguments of ``make_job``, under the caller's name for it."""

    custom_id: str
    work: str | dict[str, Any]
    options: JobOptions


def request_work(line: SourceLine, *, options: JobOptions) -> LineWork:
    """Read a line in OpenAI's format.

    Raises:
        InvalidJobError: The line is not a request.

    """
    request = read_request(line.text)
    return LineWork(request.custom_id, request.body, {**options, "endpoint": request.url})


def prompt_work(line: SourceLine, *, options: JobOptions) -> LineWork:
    """Read a line that is a prompt. Its ``custom_id`` is made of the line's number.

    Raises:
        InvalidJobError: The line is too long, or not UTF-8.

    """
    return LineWork(f"line-{line.number}", read_prompt(line.text), options)


class LineRunner:
    """Runs the lines of one batch on a fleet, and gives each line's end to ``write`` once.

    Rides out outages of RabbitMQ and Redis, and full queues.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        batch_id: str,
        first_try: int = 0,
        read: Callable[[SourceLine], LineWork],
        read_again: Callable[[SourceLine], SourceLine],
        write: Callable[[BatchOutputLine], None],
        max_in_flight: int,
    ) -> None:
        self.window = Window(max_in_flight)
        self.tokens = 0
        """How many tokens the jobs have generated."""
        self.trouble = ""
        """Why no job is accepted now; empty if nothing is wrong, or the queue is only full."""
        self._jobs = jobs
        self._batch_id = batch_id
        self._tries = range(first_try, first_try + TRIES)
        self._read = read
        self._read_again = read_again
        self._reading = asyncio.Lock()
        self._write = write
        self._max_in_flight = max_in_flight
        self._accepted = 0

    async def run(self, lines: Iterator[SourceLine | None]) -> None:
        """Submit each line, and write its answer. Lines start in order, and end in any.

        ``read_again`` gets the text of a line from its file again: while a job is in flight, it is not kept.
        Where ``lines`` has ``None``, other tasks have their turn.

        If this is cancelled, submitted jobs continue; another run of the same lines finds them.

        Raises:
            UnknownPoolError: The pool has no queue, and no job was accepted before.
            ServiceRefusedError: A service refuses all jobs.
            BatchError: The input cannot be read, or the output not written.

        """
        await self._each(lines, self._answer)

    async def cancel(self, lines: Iterator[SourceLine | None]) -> None:
        """Cancel the jobs of lines, and write each line's end: its answer, if its job had one before.

        Raises:
            ServiceRefusedError: A service refuses this.
            BatchError: The input cannot be read, or the output not written.

        """
        await self._each(lines, self._cancelled)

    async def _each(self, lines: Iterator[SourceLine | None], end: End) -> None:
        workers = [asyncio.create_task(self._work(lines, end)) for _ in range(self._max_in_flight)]
        try:
            await asyncio.gather(*workers)
        finally:
            await cancel_and_wait(*workers)
            self.window.close()

    async def _work(self, lines: Iterator[SourceLine | None], end: End) -> None:
        """Bring lines to their end, one after the other; read each when the window has a place for it."""
        while True:
            entered = await self.window.enter()
            if (line := await self._next(lines)) is None:
                self.window.leave()
                return
            custom_id, job = self._job(line)
            line = line._replace(text=None)
            if isinstance(job, Job):
                ending = end(line, job, entered)
            else:
                self.window.leave()
                ending = self._invalid(line, job)
            # A place may be taken for hours, and a job may have megabytes.
            del job
            try:
                written = await ending
            except InvalidJobError as error:
                written = await self._invalid(line, error)
            self._write(written.model_copy(update={"custom_id": custom_id}))

    async def _next(self, lines: Iterator[SourceLine | None]) -> SourceLine | None:
        async with self._reading:
            for line in lines:
                if line is not None:
                    return line
                await asyncio.sleep(0)
        return None

    def _job(self, line: SourceLine) -> tuple[str | None, Job | InvalidJobError]:
        """Return the ``custom_id`` of a line, and its job, or why it has none."""
        custom_id: str | None = None
        try:
            custom_id, asked, options = self._read(line)
            job = make_job(asked, options, max_body_bytes=MOST)
        except InvalidJobError as error:
            return custom_id or custom_id_of(line.text), error
        # For whoever looks at the job, or at its dead letter.
        metadata = {"batch": self._batch_id, "custom_id": custom_id}
        return custom_id, job.model_copy(update={"metadata": metadata})

    async def _invalid(self, line: SourceLine, error: InvalidJobError) -> BatchOutputLine:
        # A file may have a million such lines, and others have their turn between them.
        await asyncio.sleep(0)
        return self._failed(line.number, FailureCode.INVALID_REQUEST, str(error))

    async def _answer(self, line: SourceLine, job: Job | None, entered: int | None) -> BatchOutputLine:
        """Let a line's job run, or find that of an earlier run, and return its end."""
        losses = 0
        for number in self._tries:
            job_id = line_job_id(self._batch_id, line.number, number)
            # Twice: if Redis has lost the job with its key, it is the same job again.
            for _ in range(2):
                job = job or self._job_again(line)
                mine = job.model_copy(update={"id": job_id, "idempotency_key": job_id})
                there = await self._in_window(
                    partial(self._submit, mine, look=number > self._tries.start), entered
                )
                del mine
                job = entered = None
                with suppress(JobDataLostError, JobNotFoundError):
                    return await self._wait(line.number, job_id)
                losses += there
            if losses >= LOSSES:
                break
        return self._lost(line.number)

    def _job_again(self, line: SourceLine) -> Job:
        _, job = self._job(self._read_again(line))
        if isinstance(job, InvalidJobError):
            raise job
        return job

    async def _submit(self, job: Job, *, look: bool) -> bool:
        """Submit a job, or find it. With ``look``, return whether Redis has it: it may have expired."""
        await self._jobs.submit(job)
        return look and (await self._jobs.get_many([job.id]))[job.id] is not None

    async def _cancelled(self, line: SourceLine, _: Job, entered: int) -> BatchOutputLine:
        """Cancel a line's jobs, and return its end."""
        submitted = False
        tries = [line_job_id(self._batch_id, line.number, number) for number in self._tries]
        records = await self._in_window(partial(self._jobs.get_many, tries), entered)
        self.window.leave()
        for job_id in [job_id for job_id, record in records.items() if record is not None]:
            if not await self._in_window(partial(self._cancel, job_id)):
                self.window.leave()
                continue
            submitted = True
            with suppress(JobDataLostError, JobNotFoundError):
                return await self._wait(line.number, job_id)
        if submitted:
            return self._lost(line.number)
        return self._failed(line.number, FailureCode.CANCELLED, "cancelled before it was submitted")

    async def _cancel(self, job_id: str) -> bool:
        """Cancel a job. Return false if there is no such job."""
        try:
            await self._jobs.cancel(job_id)
        except JobNotFoundError:
            return False
        return True

    async def _in_window(self, call: Callable[[], Awaitable[T]], entered: int | None = None) -> T:
        """Call the fleet once the window has a place, and again until that succeeds. Keep the place then.

        ``entered`` is the round in which the first call has entered already.

        Raises:
            InvalidJobError: The job is invalid; or a service refuses it, and accepts others.
            ServiceRefusedError: A service refuses all jobs.
            UnknownPoolError: The pool has no queue, and no job was accepted before.

        """
        refusals = 0
        accepted = self._accepted
        while True:
            if entered is None:
                entered = await self.window.enter(again=refusals > 0)
            try:
                answer = await call()
            except QueueFullError:
                self.window.refused(entered, full=True)
            except (PublishUnconfirmedError, ServiceUnreachableError) as error:
                self.trouble = str(error)
                self.window.refused(entered, full=False)
            except UnknownPoolError as error:
                if not self._accepted:
                    self.window.leave()
                    raise
                # A broker that has lost its data gets its queues back from the workers.
                self.trouble = str(error)
                self.window.refused(entered, full=False)
            except ServiceRefusedError as error:
                if not error.passing and refusals >= REFUSALS_IN_DOUBT:
                    self.window.leave()
                    if accepted == self._accepted and not error.too_large:
                        raise
                    raise InvalidJobError(str(error)) from error
                self.trouble = str(error)
                self.window.refused(entered, full=False)
            except BaseException:
                self.window.leave()
                raise
            else:
                self._accepted += 1
                self.trouble = ""
                self.window.accepted()
                return answer
            entered = None
            refusals += 1

    async def _wait(self, line: int, job_id: str) -> BatchOutputLine:
        """Wait for the end of a job that has a place in the window, and give that back."""
        try:
            while True:
                try:
                    return self._ended(line, await self._jobs.wait(job_id))
                except (ServiceRefusedError, ServiceUnreachableError) as error:
                    if isinstance(error, ServiceRefusedError) and not error.passing:
                        raise
                    self.trouble = str(error)
                    await asyncio.sleep(WAIT_PAUSE_S)
        finally:
            self.window.leave()

    def _ended(self, line: int, result: Result) -> BatchOutputLine:
        self.trouble = ""
        self.tokens += result.usage.completion_tokens
        if result.state is JobState.SUCCEEDED:
            response = BatchResponse(request_id=result.job_id, body=result.response or {})
            return BatchOutputLine(id=ID_PREFIX + result.job_id, custom_id=None, response=response)
        code = result.error.code if result.error else result.state
        why = result.error.message if result.error else "no reason was recorded"
        return self._failed(line, code, why, job_id=result.job_id)

    def _lost(self, line: int) -> BatchOutputLine:
        return self._failed(
            line,
            RESULT_LOST,
            "its job has ended, but Redis no longer has the result (INFERFLEET_RESULT_TTL_S)",
        )

    def _failed(self, line: int, code: str, message: str, *, job_id: str = "") -> BatchOutputLine:
        return BatchOutputLine(
            id=ID_PREFIX + (job_id or line_job_id(self._batch_id, line, self._tries.start)),
            custom_id=None,
            error=BatchLineError(code=code, message=message, line=line),
        )
