"""Chooses TCP ports for servers that must use the same port again after a restart."""

from __future__ import annotations

import random
import socket

LOWEST = 20_000
HIGHEST = 32_000
"""Below the range that Linux (from 32768) and macOS (from 49152) use for outgoing connections.

Otherwise a client that keeps trying to reach a killed server would sooner or later get that server's own
port, connect to itself, and keep the server from starting again.
"""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now. Nothing reserves it."""
    while True:
        port = random.randint(LOWEST, HIGHEST)  # noqa: S311 - not a secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
