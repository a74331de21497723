"""Ends background tasks reliably."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import override

T = TypeVar("T")

RECANCEL_INTERVAL_S = 0.2
"""How long a cancelled task may take to end before it is cancelled again."""


class TaskGroup(asyncio.TaskGroup):
    """A task group that cancels its tasks as ``cancel_and_wait`` does.

    asyncio's cancels each of them once. If one loses that, the group waits for it for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unfinished: set[asyncio.Task[Any]] = set()

    @override
    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        task = super().create_task(coro, name=name, context=context)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._unfinished:
                await asyncio.wait(self._unfinished)
        except asyncio.CancelledError as cancelled:
            # Also if a task has failed.
            kind, error, trace = type(cancelled), cancelled, cancelled.__traceback__
        if kind is not None:
            # The group itself cancels this task if another one fails meanwhile. An error of the body stays.
            with suppress(asyncio.CancelledError):
                await cancel_and_wait(*self._unfinished)
        await super().__aexit__(kind, error, trace)


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended. Drop their results and errors.

    A cancellation can get lost: before Python 3.12, ``asyncio.wait_for``, which libraries use, swallows one
    that arrives just as its own wait ends. So this cancels a task again that continues.

    All tasks have ended when this returns, and also when it is cancelled itself.
    """
    await to_its_end(_cancel_and_wait(*tasks))


async def to_its_end(closing: Coroutine[Any, Any, None]) -> None:
    """Await something that must complete, and must not take long. Raise a cancellation only afterwards."""
    task = asyncio.create_task(closing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # The cancellation takes precedence over an error.
        _ = task.cancelled() or task.exception()
        raise cancelled
    await task


async def stop_listening(server: asyncio.Server) -> None:
    """Close a server, after it has made the connections that it has accepted. These stay open.

    asyncio makes a connection two turns of the event loop after it has accepted it. If the server is closed
    in between, asyncio fails and leaves the socket open.
    """
    for listening in server.sockets:
        server.get_loop().remove_reader(listening.fileno())
    try:
        for _ in range(2):
            await asyncio.sleep(0)
    finally:
        server.close()


async def _cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=RECANCEL_INTERVAL_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()
