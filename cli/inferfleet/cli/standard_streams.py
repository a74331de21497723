"""Makes sure that a command has its three standard streams."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Open the null device in place of each closed stream of stdin, stdout and stderr.

    Call this first: otherwise the next file or socket gets the number of a closed stream, and receives what
    libraries and child processes write to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # os.open takes the lowest free number, which is that of the closed stream.
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - until the end
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
