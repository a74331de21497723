"""An HTTP port whose connections nobody can exhaust.

Needs aiohttp, which a producer's installation does not have.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.wire.address import host_and_port
from inferfleet.wire.tasks import stop_listening

CONNECTIONS: Final = 64
"""The most connections. It is never more than a quarter of the files that the process may open."""

BACKLOG: Final = 16
"""How many connections may wait to be accepted. All are accepted at once, before any is read."""

KEEP_ALIVE_S: Final = 75.0
"""How long a connection may be idle. Prometheus scrapes every 15 to 60 s on the same connection."""


@asynccontextmanager
async def listening(
    app: web.Application, *, host: str, port: int, option: str = "--http-port"
) -> AsyncGenerator[int]:
    """Serve while the block runs. Yield the port, which is a free one if ``port`` is 0.

    ``option`` is the one of the command line that sets the port.

    When there are too many connections, the oldest one is closed. So a client that only opens connections can
    neither keep a probe out, nor use up the files that the process needs.

    Raises:
        ConfigurationError: The port is taken.

    """
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEP_ALIVE_S)
    await runner.setup()
    handlers = runner.server
    assert handlers is not None  # noqa: S101 - setup has made it
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = CONNECTIONS if files == resource.RLIM_INFINITY else min(CONNECTIONS, max(1, files // 4))

    def accepted() -> asyncio.Protocol:
        # In the order in which they were opened.
        for oldest in handlers.connections[: max(0, len(handlers.connections) + 1 - most)]:
            oldest.force_close()
        return handlers()

    try:
        try:
            server = await asyncio.get_running_loop().create_server(accepted, host, port, backlog=BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host_and_port(host, port)} ({error.strerror}); choose another {option}, "
                "or 0 for any free one"
            ) from error
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            await stop_listening(server)
    finally:
        await runner.cleanup()
