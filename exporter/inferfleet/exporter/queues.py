"""What the exporter asks of RabbitMQ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """One pool's queues at one moment. ``None`` is not known.

    ``published`` and ``acked`` count since the broker's statistics began, and start at 0 again with it.
    """

    ready: int | None = None
    unacked: int | None = None
    dead: int | None = None
    published: int | None = None
    acked: int | None = None


class Queues(Protocol):
    """Where the counts come from."""

    async def counts(self, pools: Collection[str]) -> Mapping[str, QueueCounts]:
        """Count for these pools at least.

        Raises:
            ServiceUnreachableError: RabbitMQ does not answer, or refuses.

        """
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...
