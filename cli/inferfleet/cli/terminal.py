"""Writes output: to a terminal without control characters from outside, to a pipe unchanged."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from threading import Thread
from typing import Final, TextIO

from inferfleet.schemas.printable import printable

LAST_WORDS_S: Final = 2.0
"""How long the process waits at its end for stderr to be read."""


def out(text: str) -> None:
    """Write data to stdout."""
    _write(sys.stdout, text)


def err(text: str) -> None:
    """Write to stderr and flush it."""
    _write(sys.stderr, text)
    sys.stderr.flush()


def shown_id(text: str) -> str:
    """Return an id as it is for a pipe, and printable on one line for a terminal."""
    return printable(text, one_line=True) if sys.stdout.isatty() else text


def line(text: str) -> str:
    """Return text from outside as printable text on one line."""
    return printable(" ".join(text.split()), one_line=True)


def last_words(text: str) -> None:
    """Write to stderr at the end of the process. A reader that has stopped does not keep the process alive.

    Bypasses ``sys.stderr``, whose lock a blocked write would hold.
    """
    shown = (printable(text) if sys.stderr.isatty() else text).encode(errors="backslashreplace")
    fd = sys.stderr.fileno()
    sys.stderr.flush()

    def write() -> None:
        with suppress(OSError):
            os.write(fd, shown)

    writing = Thread(target=write, daemon=True)
    writing.start()
    writing.join(LAST_WORDS_S)


def silence(stream: TextIO) -> None:
    """Discard further output of a stream that nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write(stream: TextIO, text: str) -> None:
    stream.write(printable(text) if stream.isatty() else text)
