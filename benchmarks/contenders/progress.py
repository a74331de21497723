"""Tells the benchmark's driver how far a worker is. Imported by every contender's task.

The driver measures from the first tenth of the jobs to the last job, so starting up and warming up do not
count. Standard library only: this also runs in the peers' environment.
"""

import os
import socket
import time

WARM_UP_SHARE = 0.1


class Progress:
    """Counts the jobs of one process, and sends a datagram at the first mark and at the last."""

    def __init__(self) -> None:
        self._address = os.environ["BENCH_MARKS"]
        total = int(os.environ["BENCH_JOBS"])
        self._marks = {max(1, int(total * WARM_UP_SHARE)): "first", total: "last"}
        self._done = 0

    def tick(self) -> None:
        """Count one job."""
        self._done += 1
        if (mark := self._marks.get(self._done)) is not None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(f"{mark} {self._done} {time.time()}".encode(), self._address)
