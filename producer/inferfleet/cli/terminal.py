"""Writing for a person: a terminal obeys nothing that comes from outside; a pipe gets everything as it is."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from inferfleet.schemas.printable import printable


def out(text: str) -> None:
    """Write data to stdout."""
    _write(sys.stdout, text)


def err(text: str) -> None:
    """Write to stderr, at once."""
    _write(sys.stderr, text)
    sys.stderr.flush()


def line(text: str) -> str:
    """Text from outside as a part of one line for a person."""
    return printable(" ".join(text.split()), one_line=True)


def silence(stream: TextIO) -> None:
    """Throw away what is still to be written, since nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write(stream: TextIO, text: str) -> None:
    stream.write(printable(text) if stream.isatty() else text)
