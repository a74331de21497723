"""Passes stdin on to stdout. It drops output rather than let a writer wait.

``foreign_output.py`` runs this file as a process of its own. A thread of the worker could not do this: a
library that writes while it holds Python's lock would wait for the thread, and the thread for the lock. It
imports little, because each worker starts one.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

MAX_BYTES = 1 << 20
"""How much waits at most for a reader."""


def relay(reading: int, writing: int) -> None:
    """Pass on what comes until all writers, or the reader, have closed their ends."""
    os.set_blocking(writing, False)
    waiting = bytearray()
    dropped = 0
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while True:
        # Even without an event to wait for, the end of the reader is one.
        poll.register(writing, select.POLLOUT if waiting else 0)
        ready = dict(poll.poll())
        if reading in ready:
            if not (read := os.read(reading, 65_536)):
                break
            if len(waiting) + len(read) > MAX_BYTES:
                dropped += len(read)
            else:
                if dropped:
                    waiting += b"\n%d bytes of output were dropped\n" % dropped
                    dropped = 0
                waiting += read
        if writing in ready:
            del waiting[: os.write(writing, waiting[:65_536])]
            if ready[writing] & select.POLLERR:
                return
    os.set_blocking(writing, True)
    while waiting:
        del waiting[: os.write(writing, waiting)]


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # The worker has exited.
        relay(0, 1)
