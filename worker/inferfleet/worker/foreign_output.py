"""Turns what others write to the stdout and stderr of this process into log lines.

Child processes, such as vLLM's engine core, and libraries, also those in C++, write plain text. No machine
can read that between JSON lines. So both streams become a pipe, and a thread logs each of its lines;
``output_relay.py`` is in the middle of the pipe.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Final

from inferfleet.worker import output_relay
from inferfleet.worker.log import FLUSH_TIMEOUT_S

logger = logging.getLogger(__name__)

MAX_LINE_BYTES: Final = 10_000
"""A longer line becomes several lines."""

_VLLM_LINE: Final = re.compile(
    r"(?P<source>\(\w+ pid=\d+\) )?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d "
    r"(?P<message>.*)",
    re.DOTALL,
)

_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours, and movements of the cursor."""


@contextmanager
def foreign_output_logged() -> Generator[None]:
    """Log each line that is written to stdout and stderr while the block runs.

    The log has to write elsewhere (``inferfleet.worker.log`` has a descriptor of its own). What child
    processes write after the block is dropped. If this process crashes, Python's stack is on stderr itself,
    as plain text.
    """
    relayed, writing = _relayed()
    kept = {number: os.dup(number) for number in (1, 2)}
    faulthandler.enable(kept[2])
    for number in kept:
        os.dup2(writing, number)
    end, ended = os.urandom(16).hex().encode() + b"\n", threading.Event()
    # A daemon, because child processes may keep the pipe open for longer than this process lives.
    threading.Thread(
        target=_log_lines, args=(relayed, end, ended), name="foreign-output", daemon=True
    ).start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        faulthandler.disable()
        for number, descriptor in kept.items():
            os.dup2(descriptor, number)
            os.close(descriptor)
        # The line break ends a line that somebody has begun.
        os.write(writing, b"\n" + end)
        os.close(writing)
        ended.wait(FLUSH_TIMEOUT_S)


def _relayed() -> tuple[int, int]:
    """Return the ends of a pipe with a process in its middle that lets no writer wait."""
    theirs, writing = os.pipe()
    relayed, ours = os.pipe()
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", output_relay.__file__],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, theirs, 0),
            (os.POSIX_SPAWN_DUP2, ours, 1),
            # Whoever reads this process' stderr waits for its end.
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
        # Ctrl-C and an init that signals the whole group mean the worker.
        setpgroup=0,
    )
    os.close(theirs)
    os.close(ours)
    return relayed, writing


def _log_lines(reading: int, end: bytes, ended: threading.Event) -> None:
    with os.fdopen(reading, "rb") as pipe:
        for line in iter(partial(pipe.readline, MAX_LINE_BYTES), end):
            if not line:
                break
            _log(line.decode(errors="backslashreplace"))
        ended.set()
        # Nobody who still writes may fail.
        while pipe.read(MAX_LINE_BYTES):
            pass


def _log(line: str) -> None:
    """Log a line. One in vLLM's form keeps its level; of a progress bar only the last state counts."""
    text = _ESCAPES.sub("", line).rstrip().rpartition("\r")[2]
    if (of_vllm := _VLLM_LINE.fullmatch(text)) is not None:
        level = logging.getLevelNamesMapping()[of_vllm["level"]]
        logger.log(level, "%s", f"{of_vllm['source'] or ''}{of_vllm['message']}")
    elif text:
        logger.info("%s", text)
