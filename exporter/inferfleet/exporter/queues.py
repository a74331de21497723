"""The port for counts from RabbitMQ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """The counts of one pool's queues at one moment. ``None`` is unknown.

    ``published`` and ``acked`` are counters that start at 0 when the broker's statistics start.
    """

    ready: int | None = None
    unacked: int | None = None
    dead: int | None = None
    published: int | None = None
    acked: int | None = None


class Queues(Protocol):
    """A source of counts."""

    async def counts(self, pools: Collection[str]) -> Mapping[str, QueueCounts]:
        """Return the counts of at least these pools.

        Raises:
            ServiceUnreachableError: RabbitMQ does not answer, or refuses.

        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
