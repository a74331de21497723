"""Where a client lives: one process and one event loop.

Used from elsewhere it would hang: its connections are read by tasks of that loop, and a forked process has
neither these tasks nor sockets of its own.
"""

from __future__ import annotations

import asyncio
import os

from inferfleet.schemas.errors import ClientUnusableError, ServiceUnreachableError

_forks = 0
"""How many forks lie between the process that imported this module and this one. Its id costs more to ask."""


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Home:
    """The process and the event loop that it was made in."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._forks = _forks
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def close(self) -> None:
        """From now on, nothing can be asked here."""
        self._closed = True

    def check(self) -> None:
        """Make sure that the caller is at home.

        Raises:
            ClientUnusableError: It is not. The message says what to do.
            ServiceUnreachableError: The client was closed.

        """
        if _forks != self._forks:
            check_process(self._pid)
        if self._closed:
            raise closed()
        if asyncio.get_running_loop() is not self._loop:
            raise ClientUnusableError(
                "this client belongs to another event loop: call Fleet.connect in the loop that uses it, "
                "or share one SyncFleet, which any thread may use"
            )


def check_process(pid: int) -> None:
    """Make sure that this process is that one.

    Raises:
        ClientUnusableError: It is a child of it.

    """
    if (here := os.getpid()) != pid:
        raise ClientUnusableError(
            f"this client was connected in process {pid}, and this is process {here}, forked from it: "
            "connect after the fork, in each process that uses a client (docs/how-to/hold-a-client.md)"
        )


def closed() -> ServiceUnreachableError:
    """The error of whoever asks a client that was closed."""
    return ServiceUnreachableError("this client was closed: connect another, or keep it open for longer")
