"""Background tasks that live as long as a block of code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from inferfleet.wire.tasks import cancel_and_wait


@asynccontextmanager
async def background(*coroutines: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run coroutines while the block runs, and cancel them when it ends.

    Unlike a ``TaskGroup`` this does not wrap the block's exceptions, so a caller's ``except`` clauses work.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)
