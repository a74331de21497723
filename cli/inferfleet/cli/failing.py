"""Turns an error of a command into one line on stderr and an exit code."""

from __future__ import annotations

import logging
import select
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

INTERRUPTED = 130
OUTPUT_LOST = 1
BATCH_UNFINISHED = 4
READER_GONE = 141
"""The exit code that a shell reports for a program that SIGPIPE ended."""


class Remarks(logging.Formatter):
    """Formats what a command logs like the lines of errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; for a terminal, without control characters."""
        from inferfleet.schemas.printable import printable

        text = f"inferfleet: {super().format(record)}"
        return printable(text) if sys.stderr.isatty() else text


@contextmanager
def report_errors() -> Generator[None]:
    """Turn an ``InferfleetError`` into a line and an exit code; leave bugs their traceback.

    1 is for a job that failed, 2 for invalid usage, 3 for services that cannot be reached, 4 for a batch
    whose files cannot be written. When the reader of the output has exited (``| head``), the command ends
    quietly; it reports a full disk.
    """
    try:
        try:
            with _broken_pipe_raised():
                yield
        finally:
            # Flush here: at the exit of Python an error could only be printed.
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _silence_broken():
            sys.exit(READER_GONE)
        # Imported late, because the import takes longer than printing a help page.
        from inferfleet.cli.terminal import last_words
        from inferfleet.schemas.errors import InferfleetError

        if not isinstance(error, InferfleetError):
            if isinstance(error, OSError) and _silence_broken():
                last_words(f"inferfleet: the output cannot be written: {error.strerror}\n")
                sys.exit(OUTPUT_LOST)
            raise
        last_words(f"inferfleet: {error}\n")
        sys.exit(exit_code(error))


@contextmanager
def _broken_pipe_raised() -> Generator[None]:
    """Raise the ``BrokenPipeError`` that typer has turned into an exit with 1, and restore the streams.

    Typer takes every such error for one of the output. It may also come from a socket.
    """
    streams = sys.stdout, sys.stderr
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            sys.stdout, sys.stderr = streams
            raise ended.__context__ from None
        raise


def _silence_broken() -> bool:
    """Return whether stdout or stderr is broken; discard what is left to write there."""
    from inferfleet.cli.terminal import silence

    broken = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
    for stream in broken:
        silence(stream)
    return bool(broken)


def _is_broken(stream: TextIO) -> bool:
    try:
        stream.write("")
        stream.flush()
    except OSError:
        return True
    # With PYTHONUNBUFFERED nothing is left to flush.
    polled = select.poll()
    polled.register(stream, 0)
    return any(events & select.POLLERR for _, events in polled.poll(0))


def exit_code(error: Exception) -> int:
    """Return the exit code for an ``InferfleetError``."""
    from inferfleet.schemas.errors import (
        BatchError,
        BatchOutputError,
        ConfigurationError,
        EmbeddingTimeoutError,
        InferfleetError,
        InvalidJobError,
        PartialReplayError,
        RetrievalError,
        RolloutError,
        ServiceRefusedError,
        ServiceUnreachableError,
        UnknownPoolError,
        UnknownWorkerError,
    )

    match error:
        case ServiceUnreachableError() | ServiceRefusedError():
            return 3
        case PartialReplayError(stopped=InferfleetError() as stopped):
            return exit_code(stopped)
        case BatchOutputError():
            return BATCH_UNFINISHED
        case EmbeddingTimeoutError():
            return 1
        case (
            BatchError()
            | ConfigurationError()
            | InvalidJobError()
            | RetrievalError()
            | RolloutError()
            | UnknownPoolError()
            | UnknownWorkerError()
        ):
            return 2
        case _:
            return 1
