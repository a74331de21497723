"""Checks whether a Redis server really serves, on a plain socket."""

from __future__ import annotations

import re
import socket

TIMEOUT_S = 5.0


def redis_version(host: str, port: int) -> str:
    """Return the version of a Redis that answers ``PING``.

    Raises:
        OSError: Nothing listens, or the server does not serve yet, because it loads its data for example.

    """
    with (
        socket.create_connection((host, port), timeout=TIMEOUT_S) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.sendall(b"PING\r\n")
        answer = answers.readline()
        if answer != b"+PONG\r\n":
            raise ConnectionError(f"Redis answers {answer.decode(errors='replace').strip()!r}")
        connection.sendall(b"INFO server\r\n")
        size = int(answers.readline().removeprefix(b"$"))
        found = re.search(rb"^redis_version:(\S+)", answers.read(size), re.MULTILINE)
    return found[1].decode() if found else "of unknown version"
