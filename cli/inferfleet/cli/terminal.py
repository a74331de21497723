"""Writing for a person: a terminal obeys nothing that comes from outside; a pipe gets everything as it is."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from threading import Thread
from typing import Final, TextIO

from inferfleet.schemas.printable import printable

LAST_WORDS_S: Final = 2.0
"""How long whoever reads stderr may take to read why the process ends."""


def out(text: str) -> None:
    """Write data to stdout."""
    _write(sys.stdout, text)


def err(text: str) -> None:
    """Write to stderr, at once."""
    _write(sys.stderr, text)
    sys.stderr.flush()


def shown_id(text: str) -> str:
    """An id, to be copied from a pipe or looked at on a terminal, where it cannot begin another line."""
    return printable(text, one_line=True) if sys.stdout.isatty() else text


def line(text: str) -> str:
    """Text from outside as a part of one line for a person."""
    return printable(" ".join(text.split()), one_line=True)


def last_words(text: str) -> None:
    """Write to stderr at the end of the process, which a reader that has stopped must not keep from ending.

    Past Python's own stderr, whose lock would be held then.
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
    """Throw away what is still to be written, since nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write(stream: TextIO, text: str) -> None:
    stream.write(printable(text) if stream.isatty() else text)
