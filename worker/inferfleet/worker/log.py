"""Log lines: one JSON object each for machines, or text for a person at a terminal.

No line has a prompt or an answer in it, unless ``INFERFLEET_LOG_PROMPTS`` asks for that. And no line makes
the event loop wait: a thread writes them to stderr, and what nobody reads there is dropped and counted.
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
from typing import Any, Final

from pythonjsonlogger.orjson import OrjsonFormatter

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.printable import printable
from inferfleet.schemas.settings import LogFormat, WorkerSettings

QUIET: Final = {
    "aio_pika": logging.WARNING,
    "aiormq": logging.WARNING,
    # It warns of a connection that broke, which is what our own line says.
    "aiormq.connection": logging.ERROR,
    "asyncio": logging.WARNING,
}
"""From which level on the lines of libraries say something that ours don't."""

LINES_WAITING: Final = 10_000
"""Lines that wait for their reader at most. What is more is dropped."""

LINES_AT_ONCE: Final = 500
"""Lines in one write at most."""

FLUSH_TIMEOUT_S: Final = 2.0
"""How long the last lines may take at the end of the process."""

_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime"}

ErrorInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


@contextmanager
def logging_to_stderr(settings: WorkerSettings) -> Generator[Log]:
    """Send all logging of the process to stderr while the block runs.

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
                static_fields={"worker_id": settings.worker_id},
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
    """Make a handler whose lines a thread writes to stderr. It ends, and is flushed, with the block."""
    log = Log(formatter)
    writer = _Writer(log)
    writer.start()
    try:
        yield log
    finally:
        writer.stop()


class Log(QueueHandler):
    """Takes log records without ever waiting. Lines for which there is no room are counted in ``dropped``."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.lines: SimpleQueue[Any] = SimpleQueue()
        super().__init__(self.lines)
        self.setFormatter(formatter)
        self.dropped = 0

    def say(self, text: str) -> None:
        """Take a line that is no log record, without a time or a level."""
        self.handle(logging.makeLogRecord({"msg": text}))

    def prepare(self, record: logging.LogRecord) -> str:
        """Make the line here: what it is about may have changed when it is its turn."""
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        """Take a line, which ``prepare`` has made, if there is room."""
        if self.lines.qsize() < LINES_WAITING:
            self.lines.put_nowait(record)
        else:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Say which line has a mistake in it; logging's own way is to write a traceback to stderr."""
        where = f"{record.pathname}:{record.lineno}"
        error = sys.exc_info()[1]
        self.enqueue(f"the log line at {where} cannot be written: {type(error).__name__}")


class _Writer(QueueListener):
    """The thread that writes to stderr, as many lines at once as there are.

    It writes past Python's own stderr, whose lock would be held at the end of the process while nobody reads.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(log.lines)
        self._log = log
        self._batch: list[str] = []
        self._told = 0
        self._fd = None if sys.__stderr__ is None else sys.__stderr__.fileno()

    def dequeue(self, block: bool) -> Any:
        """Take the next line; first write those that were taken, if it has to be waited for."""
        try:
            line = self._log.lines.get_nowait()
        except Empty:
            self._write()
            line = self._log.lines.get(block)
        if not isinstance(line, str):
            # The mark of the end.
            self._write()
        return line

    def handle(self, record: Any) -> None:
        """Collect a line."""
        self._batch.append(record)
        if len(self._batch) >= LINES_AT_ONCE:
            self._write()

    def stop(self) -> None:
        """Write what is left, for a limited time."""
        self.enqueue_sentinel()
        if self._thread is not None:
            self._thread.join(FLUSH_TIMEOUT_S)

    def _write(self) -> None:
        lines, self._batch = self._batch, []
        if not lines:
            return
        _write_all(self._fd, "".join(f"{line}\n" for line in lines))
        if (dropped := self._log.dropped) > self._told:
            text = f"{dropped - self._told} log lines were dropped, since nobody read them"
            self._told = dropped
            record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
            _write_all(self._fd, self._log.format(record) + "\n")


def _write_all(fd: int | None, text: str) -> None:
    data = text.encode(errors="backslashreplace")
    while data and fd is not None:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            # Somebody who shares our terminal has set it so.
            select.select((), (fd,), ())
        except OSError:
            # Whoever read it has gone. There is nobody to tell.
            return


def without_words(error: BaseException | None) -> str:
    """Format an error and its causes: of which type and where, but not what they say.

    What a library says of a request that it stumbled over may quote the prompt.
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
    """Lines to read, with their fields behind the message. What comes from outside cannot add a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Write the line without its traceback."""
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        fields = "".join(f" {name}={value}" for name, value in extra.items() if value is not None)
        return printable(super().formatMessage(record) + fields, one_line=True)

    def formatException(self, ei: ErrorInfo) -> str:  # noqa: N802 - the name is logging's
        """Write the traceback without what the errors say."""
        return without_words(ei[1])
