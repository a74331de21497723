"""What an error becomes at the prompt: one line on stderr and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

INTERRUPTED = 130
OUTPUT_LOST = 1
READER_GONE = 141
"""What a shell reports for a program that SIGPIPE ended."""


class Remarks(logging.Formatter):
    """What is logged while a command runs, as lines like those of errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the line, such that a terminal obeys nothing in it."""
        from inferfleet.schemas.printable import printable

        text = f"inferfleet: {super().format(record)}"
        return printable(text) if sys.stderr.isatty() else text


@contextmanager
def report_errors() -> Generator[None]:
    """Turn errors of ours into a line and an exit code; leave bugs their traceback.

    1 is for a job that failed, 2 for invalid usage, 3 for services out of reach. When whoever reads the
    output has gone (``| head``), the command ends quietly; a full disk is told.
    """
    try:
        try:
            yield
        finally:
            # Here and not when Python ends, where an error could only be printed.
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _silence_broken():
            sys.exit(READER_GONE)
        # Only now: importing the contract takes longer than printing a help page.
        from inferfleet.cli.terminal import last_words
        from inferfleet.schemas.errors import InferfleetError

        if not isinstance(error, InferfleetError):
            if isinstance(error, OSError) and _silence_broken():
                last_words(f"inferfleet: the output cannot be written: {error.strerror}\n")
                sys.exit(OUTPUT_LOST)
            raise
        last_words(f"inferfleet: {error}\n")
        sys.exit(exit_code(error))


def _silence_broken() -> bool:
    """Whether our output goes nowhere any more; what is left of it is thrown away then."""
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
    return False


def exit_code(error: Exception) -> int:
    """The exit code for an error of ours."""
    from inferfleet.schemas.errors import (
        ConfigurationError,
        InvalidJobError,
        ServiceRefusedError,
        ServiceUnreachableError,
        UnknownPoolError,
        UnknownWorkerError,
    )

    match error:
        case ServiceUnreachableError() | ServiceRefusedError():
            return 3
        case ConfigurationError() | InvalidJobError() | UnknownPoolError() | UnknownWorkerError():
            return 2
        case _:
            return 1
