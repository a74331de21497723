"""Makes sure that a command has its three standard streams, and that stdout takes any character."""

from __future__ import annotations

import codecs
import os
import sys
from io import TextIOWrapper
from typing import Final

ESCAPED: Final = "inferfleet.escaped"


def open_standard_streams() -> None:
    r"""Open the null device in place of each closed stream of stdin, stdout and stderr.

    Call this first: otherwise the next file or socket gets the number of a closed stream, and receives what
    libraries and child processes write to it.

    A character that the encoding of stdout lacks is written as JSON escapes it, like ``\u2014``, so that no
    answer is lost in another locale than UTF-8, and JSON remains JSON.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # os.open takes the lowest free number, which is that of the closed stream.
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - until the end
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if isinstance(sys.stdout, TextIOWrapper):
        codecs.register_error(ESCAPED, _escaped)
        sys.stdout.reconfigure(errors=ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    import json

    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - stdout is only written
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
