"""Ending background tasks for sure."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 0.2
"""How long a cancelled task has to end before it is cancelled again."""


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended; their results and errors are dropped.

    A cancellation can get lost: before Python 3.12 ``asyncio.wait_for`` swallows one that arrives as its
    own wait ends, and libraries use it. So a task that goes on is cancelled again.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()
