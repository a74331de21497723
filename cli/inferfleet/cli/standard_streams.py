"""The three standard streams of a command, whoever started it."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Open those of stdin, stdout and stderr that are closed on the null device.

    To be called first of all: the next file or socket would get the number of a closed one, and with it what
    libraries and child processes write to stderr.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number, which is that of the closed stream.
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - until the end
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
