"""How the blocking twins call their asynchronous originals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class BlockingCall(Protocol):
    """Runs an asynchronous call in the client's event loop, and returns what it returns."""

    def __call__(self, function: Callable[[], Awaitable[T]], /) -> T:
        """Block until the call has returned, and raise what it raises."""
        ...
