"""A server that stops listening leaves no socket open, not even one that it has just accepted."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from contextlib import ExitStack

import pytest

from inferfleet.wire.tasks import stop_listening

CLIENTS = 5


@pytest.mark.parametrize("turns", range(4))
def test_a_connection_that_was_just_accepted_is_made(turns: int) -> None:
    made: list[asyncio.StreamWriter] = []

    async def serve_and_stop(clients: ExitStack) -> None:
        server = await asyncio.start_server(lambda _, writer: made.append(writer), "127.0.0.1", 0)
        for _ in range(CLIENTS):
            clients.enter_context(socket.create_connection(server.sockets[0].getsockname()))
        for _ in range(turns):
            await asyncio.sleep(0)
        await stop_listening(server)
        for writer in made:
            writer.close()
            await writer.wait_closed()

    with warnings.catch_warnings(record=True) as caught, ExitStack() as clients:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(serve_and_stop(clients))
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert len(made) in {0, CLIENTS}
