"""Chooses TCP ports for servers that must use the same port again after a restart."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator

LOWEST = 20_000
HIGHEST = 32_000
"""Below the range that Linux (from 32768) and macOS (from 49152) use for outgoing connections.

Otherwise a client that keeps trying to reach a killed server would sooner or later get that server's own
port, connect to itself, and keep the server from starting again.
"""

BLOCK = 40
"""How many ports a process claims at once."""


class _Ports:
    """The ports of this process, each of which is handed out once.

    Ports are claimed in blocks: a block belongs to the process that holds a socket on its first port. So two
    processes do not choose the same port for servers that have yet to start.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: list[socket.socket] = []
        self._ports = self._all()

    def take(self) -> int:
        with self._lock:
            return next(port for port in self._ports if _is_free(port))

    def _all(self) -> Iterator[int]:
        while True:
            yield from self._unclaimed()
            # Every block has an owner: hand out again what this process has already used.
            for claim in self._claims:
                yield from _rest_of_block(claim)

    def _unclaimed(self) -> Iterator[int]:
        firsts = range(LOWEST, HIGHEST, BLOCK)
        for first in random.sample(firsts, len(firsts)):
            claim = socket.socket()
            try:
                claim.bind(("127.0.0.1", first))
            except OSError:
                claim.close()
                continue
            self._claims.append(claim)
            yield from _rest_of_block(claim)


def _rest_of_block(claim: socket.socket) -> range:
    first: int = claim.getsockname()[1]
    return range(first + 1, first + BLOCK)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


_PORTS = _Ports()


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens, and which no other call has returned lately.

    This includes calls in other processes.
    """
    return _PORTS.take()
