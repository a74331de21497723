"""Logging: a JSON object per line for machines, or text for a person at a terminal.

No line contains a prompt or an answer, unless ``INFERFLEET_LOG_PROMPTS`` is set. And no line blocks the event
loop: a thread writes the lines to stderr, and drops and counts those that nobody reads.

``foreign_output.py`` makes such lines of what others write to this process' stdout and stderr.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Protocol

from pythonjsonlogger.orjson import OrjsonFormatter

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.job import Job
from inferfleet.schemas.printable import printable
from inferfleet.schemas.settings import LogFormat
from inferfleet.schemas.trace import trace_id

QUIET: Final = {
    "aio_pika": logging.WARNING,
    "aiormq": logging.WARNING,
    # It warns of a broken connection, as our own line does.
    "aiormq.connection": logging.ERROR,
    "asyncio": logging.WARNING,
    "uvicorn.error": logging.WARNING,
}
"""The lowest levels at which libraries say something that our own lines do not."""

LINES_WAITING: Final = 10_000
"""The most lines that wait to be written. Further lines are dropped."""

LINES_AT_ONCE: Final = 500
"""The most lines in one write."""

FLUSH_TIMEOUT_S: Final = 2.0
"""How long writing the last lines may take at the end of the process."""

_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime"}

ErrorInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LogSettings(Protocol):
    """The settings of a process that logs."""

    @property
    def log_format(self) -> LogFormat:
        """The format of the lines."""
        ...

    @property
    def log_level(self) -> str:
        """The lowest level to log."""
        ...


@contextmanager
def logging_to_stderr(settings: LogSettings, **fields: str) -> Generator[Log]:
    """Log to stderr while the block runs. Each JSON line has these ``fields``, too.

    Raises:
        ConfigurationError: There is no such level.

    """
    level = settings.log_level.upper()
    levels = logging.getLevelNamesMapping()
    if level not in levels:
        raise ConfigurationError(f"INFERFLEET_LOG_LEVEL: {level!r} is not one of {', '.join(levels)}")
    formatter: logging.Formatter
    match settings.log_format:
        case LogFormat.JSON:
            formatter = _JsonLines(
                ("asctime", "levelname", "name", "message"),
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                static_fields=fields,
            )
        case LogFormat.CONSOLE:
            formatter = Text("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    with lines_to_stderr(formatter) as log:
        logging.basicConfig(level=level, handlers=[log], force=True)
        for name, least in QUIET.items():
            logging.getLogger(name).setLevel(least)
        yield log


@contextmanager
def lines_to_stderr(formatter: logging.Formatter) -> Generator[Log]:
    """Make a handler whose lines a thread writes to stderr. The end of the block flushes and ends it."""
    log = Log(formatter)
    writer = _Writer(log)
    writer.start()
    try:
        yield log
    finally:
        writer.stop()


class Log(QueueHandler):
    """Takes log records without ever blocking. ``dropped`` counts the lines for which there was no room."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.lines: SimpleQueue[Any] = SimpleQueue()
        super().__init__(self.lines)
        self.setFormatter(formatter)
        self.dropped = 0

    def say(self, text: str) -> None:
        """Write a plain line, without a time or a level."""
        self.handle(logging.makeLogRecord({"msg": text}))

    def prepare(self, record: logging.LogRecord) -> str:
        """Format the line now, because its arguments may have changed when the thread writes it."""
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        """Queue a line from ``prepare``, if there is room."""
        if self.lines.qsize() < LINES_WAITING:
            self.lines.put_nowait(record)
        else:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Name the faulty log call. The standard library would write a traceback to stderr."""
        where = f"{record.pathname}:{record.lineno}"
        error = sys.exc_info()[1]
        self.enqueue(f"the log line at {where} cannot be written: {type(error).__name__}")


class _Writer(QueueListener):
    """The thread that writes to stderr, all waiting lines at once.

    It bypasses ``sys.stderr``: if nobody reads, that lock would still be held at the end of the process. And
    it has a descriptor of its own, because stderr may become a pipe to this log.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(log.lines)
        self._log = log
        self._batch: list[str] = []
        self._told = 0
        self._fd = None if sys.__stderr__ is None else os.dup(sys.__stderr__.fileno())

    def dequeue(self, block: bool) -> Any:
        """Take the next line. If none is waiting, write the collected lines first."""
        try:
            line = self._log.lines.get_nowait()
        except Empty:
            self._write()
            line = self._log.lines.get(block)
        if not isinstance(line, str):
            # The marker of the end.
            self._write()
        return line

    def handle(self, record: Any) -> None:
        """Collect a line."""
        self._batch.append(record)
        if len(self._batch) >= LINES_AT_ONCE:
            self._write()

    def stop(self) -> None:
        """Write the remaining lines, for a limited time."""
        self.enqueue_sentinel()
        if self._thread is None:
            return
        self._thread.join(FLUSH_TIMEOUT_S)
        if self._fd is not None and not self._thread.is_alive():
            os.close(self._fd)

    def _write(self) -> None:
        lines, self._batch = self._batch, []
        if not lines:
            return
        _write_all(self._fd, "".join(f"{line}\n" for line in lines))
        if (dropped := self._log.dropped) > self._told:
            text = f"{dropped - self._told} log lines were dropped because nobody read them"
            self._told = dropped
            record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
            _write_all(self._fd, self._log.format(record) + "\n")


def _write_all(fd: int | None, text: str) -> None:
    data = text.encode(errors="backslashreplace")
    while data and fd is not None:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            # Another process on the same terminal has made it non-blocking.
            select.select((), (fd,), ())
        except OSError:
            # The reader has gone, so there is nowhere to report this.
            return


def about(job: Job, *, attempt: int | None = None) -> dict[str, object]:
    """Return the fields of a log line about a job: what a search would look for."""
    fields: dict[str, object] = {"job_id": job.id, "tenant": job.tenant}
    if attempt is not None:
        fields["attempt"] = attempt
    if job.session_id is not None:
        fields["session_id"] = job.session_id
    if job.traceparent is not None:
        fields["trace_id"] = trace_id(job.traceparent)
    return fields


def without_words(error: BaseException | None) -> str:
    """Format the types and places of an error and its causes, without their messages.

    A library's message about a request that made it fail may quote the prompt.
    """
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        parts.append("".join([*traceback.format_tb(error.__traceback__), type(error).__qualname__]))
        error = error.__cause__ or error.__context__
    return "\ncaused by\n".join(parts)


class _JsonLines(OrjsonFormatter):
    def formatException(self, ei: ErrorInfo) -> str:  # noqa: N802 - the name is logging's
        return without_words(ei[1])


class Text(logging.Formatter):
    """Text lines, with their fields after the message. Text from outside cannot add a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Format the line without its traceback."""
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        fields = "".join(f" {name}={value}" for name, value in extra.items() if value is not None)
        return printable(super().formatMessage(record) + fields, one_line=True)

    def formatException(self, ei: ErrorInfo) -> str:  # noqa: N802 - the name is logging's
        """Format the traceback without the messages of the errors."""
        return without_words(ei[1])
