"""Counts from RabbitMQ's HTTP API: all of them, up to 5 s old."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from inferfleet.exporter.queues import QueueCounts
from inferfleet.schemas.names import dead_queue, job_queue, warm_queue
from inferfleet.wire.rabbitmq.management import ManagementApi
from inferfleet.wire.rabbitmq.management_answers import QueueAnswer

TIMEOUT_S = 4.0
PAGE = 500
COLUMNS = "name,messages_ready,messages_unacknowledged,message_stats.publish,message_stats.ack"
NAMES = "^inferfleet[.](jobs|warm|dead)[.]"
GONE = 1000
"""How many queues that have gone are remembered by name in each pool."""


class ManagementQueues:
    """Queries all queues of the AMQP URL's virtual host at once, and so finds pools that nobody named.

    Raises ``ConfigurationError`` if an address is invalid.
    """

    def __init__(self, management_url: str, *, amqp_url: str) -> None:
        self._api = ManagementApi(management_url, amqp_url=amqp_url, timeout_s=TIMEOUT_S)
        self._api.check()
        self._warm: dict[str, _Warm] = defaultdict(_Warm)

    async def counts(self, pools: Collection[str]) -> Mapping[str, QueueCounts]:
        """Return the counts of all existing pools. See ``Queues``."""
        found = {queue.name: queue for queue in await self._all()}
        prefix = job_queue("")
        named = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        wanted = sorted(named | {pool for pool in pools if job_queue(pool) in found})
        return {
            pool: self._warm[pool].add(
                _counts(found[job_queue(pool)], found.get(dead_queue(pool))),
                [queue for name, queue in found.items() if name.startswith(warm_queue(pool, ""))],
            )
            for pool in wanted
        }

    async def aclose(self) -> None:
        """Do nothing: no connection stays open between two calls."""

    async def _all(self) -> list[QueueAnswer]:
        queues: list[QueueAnswer] = []
        page = pages = 1
        while page <= pages:
            answer = await self._api.queues(
                {
                    "page": str(page),
                    "page_size": str(PAGE),
                    "name": NAMES,
                    "use_regex": "true",
                    "columns": COLUMNS,
                }
            )
            queues += answer.items
            pages = answer.page_count
            page += 1
        return queues


class _Warm:
    """What the queues of a pool's workers add to its counts.

    Workers come and go, and with them their queues. A turn that waits there for its worker counts as held by
    it.
    """

    def __init__(self) -> None:
        self._acked: dict[str, int] = {}
        """The counters of the queues that there are, or were when they were last seen, which comes first."""
        self._acked_before = 0
        """The sum of those that have not been seen for so long that they are forgotten."""

    def add(self, counts: QueueCounts, queues: Sequence[QueueAnswer]) -> QueueCounts:
        for queue in queues:
            self._acked.pop(queue.name, None)
            self._acked[queue.name] = queue.message_stats.ack or 0
        # Some are kept, because a queue that an answer lacks may come back with its counter.
        while len(self._acked) > len(queues) + GONE:
            self._acked_before += self._acked.pop(next(iter(self._acked)))
        if counts.unacked is None or counts.acked is None:
            return counts
        held = sum((queue.messages_ready or 0) + (queue.messages_unacknowledged or 0) for queue in queues)
        acked = counts.acked + self._acked_before + sum(self._acked.values())
        return replace(counts, unacked=counts.unacked + held, acked=acked)


def _counts(jobs: QueueAnswer, dead: QueueAnswer | None) -> QueueCounts:
    stats, ready = jobs.message_stats, jobs.messages_ready
    # A queue has no statistics before its first message. If none is ready either, its counters are 0.
    nothing_yet = 0 if ready == 0 else None
    published = nothing_yet if stats.publish is None else stats.publish
    no_acks = nothing_yet if stats.publish is None else 0
    return QueueCounts(
        ready=ready,
        unacked=jobs.messages_unacknowledged,
        dead=dead.messages_ready if dead else None,
        published=published,
        acked=no_acks if stats.ack is None else stats.ack,
    )
