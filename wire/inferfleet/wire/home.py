"""The home of a client: one process and one event loop.

Used elsewhere the client would hang: tasks of that loop read its connections, and a forked process has
neither these tasks nor its own sockets.
"""

from __future__ import annotations

import asyncio
import os

from inferfleet.schemas.errors import ClientUnusableError, ServiceUnreachableError

_forks = 0
"""How many forks are between the process that imported this module and this one. A process id costs more."""


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Home:
    """The process and the event loop in which it was made."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._forks = _forks
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def close(self) -> None:
        """Make ``check`` fail from now on."""
        self._closed = True

    def check(self) -> None:
        """Make sure that the caller is in this process and event loop.

        Raises:
            ClientUnusableError: The caller is elsewhere. The message says what to do.
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
    """Make sure that this process has not been forked since.

    Raises:
        ClientUnusableError: This process is a forked child.

    """
    if (here := os.getpid()) != pid:
        raise ClientUnusableError(
            f"this client was connected in process {pid}, and this is process {here}, forked from it: "
            "connect after the fork, in each process that uses a client (docs/how-to/hold-a-client.md)"
        )


def closed() -> ServiceUnreachableError:
    """Make the error for a call of a closed client."""
    return ServiceUnreachableError("this client was closed: connect another, or keep it open for longer")
