"""The embedded broker: an event loop in its own thread, listening on 127.0.0.1."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from inferfleet.local.embedded.connection import PASSWORD, USER, ClientConnection
from inferfleet.local.embedded.virtual_host import VirtualHost
from inferfleet.wire.tasks import stop_listening


class EmbeddedBroker:
    """A RabbitMQ look-alike that lives as long as its ``with`` block, and keeps everything in memory.

    It has its own thread, so a caller that blocks or runs another event loop does not stop it.
    """

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._port: Future[int] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-amqp-broker", daemon=True)

    @property
    def url(self) -> str:
        """The AMQP URL. Valid inside the ``with`` block."""
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self._port.result()}/"

    def __enter__(self) -> Self:
        self._thread.start()
        self._port.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._port.done():
                raise
            self._port.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        host = VirtualHost()
        connections: set[ClientConnection] = set()
        server = await self._loop.create_server(
            lambda: ClientConnection(host, connections=connections), "127.0.0.1", 0
        )
        async with server:
            self._port.set_result(server.sockets[0].getsockname()[1])
            await self._stop.wait()
            await stop_listening(server)
            for connection in list(connections):
                connection.abort()
