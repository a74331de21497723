"""Checks whether an AMQP server really serves, by a whole handshake on a plain socket."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TypeVar

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.header import ProtocolHeader

Method = TypeVar("Method", bound=Frame)

TIMEOUT_S = 5.0
FRAME_HEADER_SIZE = 7
FRAME_END_SIZE = 1


def amqp_version(host: str, port: int, *, user: str, password: str) -> str:
    """Open the virtual host ``/`` and return the server's version.

    Raises:
        OSError: Nothing listens, or the server does not accept connections (yet).

    """
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        connection.sendall(ProtocolHeader().marshal())
        start = _expect(connection, commands.Connection.Start)
        _send(connection, commands.Connection.StartOk(mechanism="PLAIN", response=f"\0{user}\0{password}"))
        tune = _expect(connection, commands.Connection.Tune)
        _send(connection, commands.Connection.TuneOk(channel_max=tune.channel_max, frame_max=tune.frame_max))
        _send(connection, commands.Connection.Open(virtual_host="/"))
        _expect(connection, commands.Connection.OpenOk)
        _send(connection, commands.Connection.Close(reply_code=200, class_id=0, method_id=0))
        # The version is known, so an error while closing does not matter.
        with suppress(OSError):
            _expect(connection, commands.Connection.CloseOk)
    return str(start.server_properties.get("version", "of unknown version"))


def _send(connection: socket.socket, method: Frame) -> None:
    connection.sendall(frame.marshal(method, 0))


def _expect(connection: socket.socket, kind: type[Method]) -> Method:
    head = _read(connection, FRAME_HEADER_SIZE)
    _, _, size = frame.frame_parts(head)
    if size is None:
        raise ConnectionError(f"expected an AMQP frame, got {head!r}")
    _, _, method = frame.unmarshal(head + _read(connection, size + FRAME_END_SIZE))
    if not isinstance(method, kind):
        raise ConnectionError(f"expected {kind.name}, got {method.name}")
    return method


def _read(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionError("the server closed the connection during the AMQP handshake")
        received += part
    return received
