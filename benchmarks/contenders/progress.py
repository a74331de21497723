"""Tells the benchmark's driver how far a worker is. Imported by every contender's task.

The driver measures from the first tenth of the jobs to the last job, so starting up and warming up do not
count. Standard library only: this also runs in the peers' environment.
"""

import os
import socket
import time

WARM_UP_SHARE = 0.1


class Progress:
    """Counts the jobs of one process, and sends a datagram at the first mark and at the last.

    With ``BENCH_STEP`` also after every so many jobs: then somebody has to listen all the time.
    """

    def __init__(self) -> None:
        self._address = os.environ["BENCH_MARKS"]
        total = int(os.environ["BENCH_JOBS"])
        self._marks = {max(1, int(total * WARM_UP_SHARE)): "first", total: "last"}
        self._step = int(os.environ.get("BENCH_STEP", "0"))
        self._done = 0

    def tick(self) -> None:
        """Count one job."""
        self._done += 1
        mark = self._marks.get(self._done)
        if mark is None and self._step and self._done % self._step == 0:
            mark = "step"
        if mark is not None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(f"{mark} {self._done} {time.time()}".encode(), self._address)
