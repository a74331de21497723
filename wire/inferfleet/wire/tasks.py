"""Ending background tasks for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

RECANCEL_INTERVAL_S = 0.2
"""How long a cancelled task has to end before it is cancelled again."""


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended; their results and errors are dropped.

    A cancellation can get lost: before Python 3.12 ``asyncio.wait_for`` swallows one that arrives as its
    own wait ends, and libraries use it. So a task that goes on is cancelled again.

    All have ended when this returns, and also when it is cancelled itself.
    """
    await to_its_end(_cancel_and_wait(*tasks))


async def to_its_end(closing: Coroutine[Any, Any, None]) -> None:
    """Await what has to be done completely, and must not take long; a cancellation counts afterwards."""
    task = asyncio.create_task(closing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # What went wrong as well is of no interest any more.
        _ = task.cancelled() or task.exception()
        raise cancelled
    await task


async def _cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=RECANCEL_INTERVAL_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()
