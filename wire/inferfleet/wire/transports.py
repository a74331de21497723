"""What asyncio's transports do differently in one version of Python than in the next."""

from __future__ import annotations

import asyncio
from contextlib import suppress


def abort(transport: asyncio.WriteTransport) -> None:
    """Close a connection at once, and drop data that was not sent yet."""
    # Python 3.11.2, which Debian 12 has, raises this if a connection with TLS was closed before.
    with suppress(AttributeError):
        transport.abort()
