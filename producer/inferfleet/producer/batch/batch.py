"""A batch: the lines of a file, run on a fleet, with their answers in another file.

A batch may end at any moment, also by SIGKILL, and continues when it is opened again with the same plan.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from inferfleet.producer.batch.files import (
    BatchRecord,
    LineFile,
    LineSet,
    count_lines,
    forget_stop,
    is_written,
    read_record,
    record_path,
    stop_path,
    write_record,
)
from inferfleet.producer.batch.lines import LineRunner, LineWork, prompt_work, request_work
from inferfleet.producer.batch.plan import (
    BatchPlan,
    begin,
    require_record,
    require_same,
    require_unchanged,
    retried,
)
from inferfleet.producer.batch.progress import BatchProgress, Rates, Tell
from inferfleet.producer.batch.source import SourceLine, read_lines
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_making import JobOptions
from inferfleet.schemas.batch import BatchOutputLine
from inferfleet.schemas.errors import BatchError, BatchOutputError, UnknownPoolError
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.tasks import cancel_and_wait

DEFAULT_IN_FLIGHT: Final = 1000

TICK_S: Final = 0.5
"""How often a run tells its progress, and sees to it that what it has written is on disk."""

STOP_S: Final = 120.0
"""How long a run may take to stop. On NFS it may see the file that tells it to stop only after a minute."""

SKIPPED_AT_ONCE: Final = 1000
"""How many lines that are done a run passes over before others have their turn."""

LONGEST_LINE: Final = 8
"""How much longer than a body a line may be: JSON may need six bytes for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """What the files of a batch say. ``running`` is whether a run of it is going on."""

    record: BatchRecord
    running: bool
    succeeded: int
    failed: int


class Batch:
    """A batch whose files are open. No other process can run or cancel it meanwhile."""

    def __init__(
        self, *, record: BatchRecord, source: Path, answers: LineFile, errors: LineFile, longest: int
    ) -> None:
        self.record = record
        self.error_file = errors.path
        self._source = source
        self._answers = answers
        self._errors = errors
        self._longest = longest
        self._take_up()

    @classmethod
    @contextmanager
    def opened(
        cls, plan: BatchPlan, settings: ProducerSettings, *, retry_failed: bool = False
    ) -> Generator[Batch]:
        """Begin a batch, or continue it, if there is one with this output.

        If all lines are done, ``retry_failed`` empties the error file, so that the lines in it run again.

        Reads the whole input, which takes ten to twenty seconds for a million lines.

        Raises:
            BatchError: The input cannot become a batch, it or an option has changed since the batch began, or
                another run of the batch is going on.
            BatchOutputError: A file cannot be written.

        """
        longest = LONGEST_LINE * settings.max_body_bytes
        begun = None if read_record(plan.output) else begin(plan, longest=longest)
        make = begun is not None
        with (
            LineFile.opened(plan.output, make=make) as answers,
            LineFile.opened(plan.error_file, make=make) as errors,
        ):
            # The cancel that wrote it was killed, or has not noticed yet that the previous run has ended.
            forget_stop(plan.output)
            record = read_record(plan.output) or begun
            if record is None:
                raise BatchError(f"{record_path(plan.output)} has disappeared; run the batch again")
            if record is begun:
                write_record(plan.output, record)
            else:
                require_same(plan, record)
            try:
                batch = cls(
                    record=record, source=plan.source, answers=answers, errors=errors, longest=longest
                )
                if retry_failed:
                    batch._retry_failed(plan.output)
                yield batch
            except UnknownPoolError:
                if record is begun:
                    # No job was accepted, and the next run may have another pool.
                    for path in (record_path(plan.output), plan.output, plan.error_file):
                        path.unlink()
                raise

    @classmethod
    @contextmanager
    def reopened(cls, output: Path, settings: ProducerSettings) -> Generator[Batch]:
        """Open the batch with this output, whatever became of its input.

        Raises:
            BatchError: There is no such batch, or a run of it is going on.
            BatchOutputError: A file cannot be written.

        """
        record = require_record(output)
        with (
            LineFile.opened(output, make=False) as answers,
            LineFile.opened(record.error_file(output), make=False) as errors,
        ):
            longest = LONGEST_LINE * settings.max_body_bytes
            forget_stop(output)
            # Again: a run may have changed it before the files were locked.
            record = require_record(output)
            yield cls(record=record, source=record.source, answers=answers, errors=errors, longest=longest)

    def client_settings(self, settings: ProducerSettings) -> ProducerSettings:
        """Return settings for the client of this batch: a run gets the replies to jobs of the runs before."""
        return settings.model_copy(update={"client_id": f"batch-{self.record.id}"})

    async def run(
        self, fleet: Fleet, *, max_in_flight: int = DEFAULT_IN_FLIGHT, tell: Tell | None = None
    ) -> BatchProgress:
        """Run all lines that are not done, and return how many succeeded and failed.

        Rides out outages and full queues. If it is cancelled, or fails, jobs that were submitted continue,
        and the next run takes their results. ``tell`` is called about every half second.

        Raises:
            UnknownPoolError: The pool has no queue, and no job was accepted before.
            ServiceRefusedError: A service refuses all jobs.
            BatchError: The input has changed during the run.
            BatchOutputError: The output cannot be written.

        """
        runner = self._runner(fleet, max_in_flight)
        progress = await self._watched(runner, runner.run(self._unfinished()), tell)
        if progress.done != self.record.lines:
            raise BatchError(f"{self._source} has changed while the batch ran; restore it")
        return progress

    async def cancel(self, fleet: Fleet, *, tell: Tell | None = None) -> BatchProgress:
        """Cancel all lines that are not done. Those that have an answer keep it, the others become errors.

        Raises:
            ServiceRefusedError: A service refuses this.
            BatchError: The input has changed, so that the lines' ids are not known. Their jobs are cancelled.
            BatchOutputError: The output cannot be written.

        """
        runner = self._runner(fleet, DEFAULT_IN_FLIGHT)
        try:
            require_unchanged(self.record, source=self._source)
        except BatchError as error:
            jobs = LineRunner(
                fleet,
                batch_id=self.record.id,
                first_try=self.record.first_try,
                read=lambda _: LineWork("", "of a line that is not known", {}),
                read_again=lambda line: line,
                write=lambda _: None,
                max_in_flight=DEFAULT_IN_FLIGHT,
            )
            await jobs.cancel(self._numbers())
            raise BatchError(f"the jobs are cancelled, but their lines have no end: {error}") from error
        return await self._watched(runner, runner.cancel(self._unfinished()), tell)

    def progress(self) -> BatchProgress:
        """Return how far the batch is."""
        return BatchProgress(
            lines=self.record.lines, succeeded=self._answers.lines, failed=self._errors.lines
        )

    def _take_up(self) -> None:
        self._done = LineSet(self.record.last_line)
        self._answers.take_up(self.record.id, self._done)
        self._errors.take_up(self.record.id, self._done, first_try=self.record.first_try)

    def _retry_failed(self, output: Path) -> None:
        if self._errors.lines and self.progress().done == self.record.lines:
            # From here on the errors are void, whether or not they are still in their file.
            self.record = retried(self.record)
            write_record(output, self.record)
            self._take_up()

    def _runner(self, fleet: Fleet, max_in_flight: int) -> LineRunner:
        read = prompt_work if self.record.prompts else request_work
        return LineRunner(
            fleet,
            batch_id=self.record.id,
            first_try=self.record.first_try,
            read=partial(read, options=cast("JobOptions", self.record.options)),
            read_again=self._read_again,
            write=self._write,
            max_in_flight=max_in_flight,
        )

    def _write(self, line: BatchOutputLine) -> None:
        (self._answers if line.error is None else self._errors).append(line)

    def _unfinished(self) -> Iterator[SourceLine | None]:
        return self._open(read_lines(self._source, longest=self._longest, size=self.record.size))

    def _numbers(self) -> Iterator[SourceLine | None]:
        return self._open(SourceLine(number, None) for number in range(1, self.record.last_line + 1))

    def _open(self, lines: Iterable[SourceLine]) -> Iterator[SourceLine | None]:
        """Leave out the lines that are done. Yields ``None`` now and then in a long stretch of them."""
        for line in lines:
            if line.number not in self._done:
                yield line
            elif not line.number % SKIPPED_AT_ONCE:
                yield None

    def _read_again(self, line: SourceLine) -> SourceLine:
        lines = read_lines(self._source, longest=self._longest, size=self.record.size, since=line)
        if (again := next(lines, None)) is None:
            raise BatchError(f"{self._source} has changed while the batch ran; restore it")
        return again

    async def _watched(
        self, runner: LineRunner, running: Coroutine[Any, Any, None], tell: Tell | None
    ) -> BatchProgress:
        """Await a run. Meanwhile, and at its end, tell its progress, and bring what it writes to disk."""
        tasks = [asyncio.create_task(running), asyncio.create_task(self._tick(runner, tell))]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*tasks)
            self._sync()
        for task in ended:
            task.result()
        if tell:
            tell(self.progress())
        return self.progress()

    async def _tick(self, runner: LineRunner, tell: Tell | None) -> None:
        rates = Rates(runner)
        while True:
            if tell:
                tell(rates.add_to(self.progress()))
            if stop_path(self._answers.path).exists():
                raise BatchError("this run was stopped, because somebody is cancelling the batch")
            await asyncio.sleep(TICK_S)
            await asyncio.to_thread(self._sync)

    def _sync(self) -> None:
        self._answers.sync()
        self._errors.sync()


async def stop_run(output: Path) -> None:
    """Stop the run of the batch with this output, on whichever machine it is, and return when it has ended.

    Its jobs continue.

    Raises:
        BatchError: There is no such batch, or its run has not stopped within ``STOP_S``.
        BatchOutputError: The folder of the output cannot be written.

    """
    require_record(output)
    stop = stop_path(output)
    until = time.monotonic() + STOP_S
    try:
        while is_written(output):
            if time.monotonic() >= until:
                raise BatchError(
                    f"the run that writes to {output} has not stopped within {STOP_S:.0f} s: end its "
                    "process, and cancel again. A run of version 0.2 can only be stopped in this way"
                )
            stop.touch()
            await asyncio.sleep(TICK_S)
    except OSError as error:
        raise BatchOutputError(f"cannot write {stop}: {error.strerror}") from error
    finally:
        forget_stop(output)


def batch_status(output: Path) -> BatchStatus:
    """Read how far the batch with this output is. Asks no service, and changes nothing.

    Raises:
        BatchError: There is no such batch, or its files cannot be read.

    """
    record = require_record(output)
    done = LineSet(record.last_line)
    return BatchStatus(
        record=record,
        succeeded=count_lines(output, record.id, done),
        failed=count_lines(record.error_file(output), record.id, done, first_try=record.first_try),
        running=is_written(output),
    )
