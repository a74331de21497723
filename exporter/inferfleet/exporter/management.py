"""Counts from RabbitMQ's HTTP API: all of them, up to 5 s old."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

from inferfleet.exporter.queues import QueueCounts
from inferfleet.schemas.names import dead_queue, job_queue, warm_queue
from inferfleet.wire.rabbitmq.management import ManagementApi

TIMEOUT_S = 4.0
PAGE = 500
COLUMNS = "name,messages_ready,messages_unacknowledged,message_stats.publish,message_stats.ack"
NAMES = "^inferfleet[.](jobs|warm|dead)[.]"


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
        found = {str(queue["name"]): queue for queue in await self._all()}
        prefix = job_queue("")
        named = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        wanted = sorted(named | {pool for pool in pools if job_queue(pool) in found})
        return {
            pool: self._warm[pool].add(
                _counts(found[job_queue(pool)], found.get(dead_queue(pool))),
                {name: queue for name, queue in found.items() if name.startswith(warm_queue(pool, ""))},
            )
            for pool in wanted
        }

    async def aclose(self) -> None:
        """Do nothing: no connection stays open between two calls."""

    async def _all(self) -> list[dict[str, Any]]:
        queues: list[dict[str, Any]] = []
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
            queues += cast("list[dict[str, Any]]", answer["items"])
            pages = int(answer["page_count"])
            page += 1
        return queues


class _Warm:
    """What the queues of a pool's workers add to its counts.

    Workers come and go, and with them their queues. A turn that waits there for its worker counts as held by
    it.
    """

    def __init__(self) -> None:
        self._acked: dict[str, int] = {}
        """The counters of all queues that there are, or were when they were last seen."""

    def add(self, counts: QueueCounts, queues: Mapping[str, Mapping[str, Any]]) -> QueueCounts:
        for name, queue in queues.items():
            stats = cast("Mapping[str, Any]", queue.get("message_stats") or {})
            self._acked[name] = stats.get("ack", 0)
        if counts.unacked is None or counts.acked is None:
            return counts
        held = sum(
            queue.get(state) or 0
            for queue in queues.values()
            for state in ("messages_ready", "messages_unacknowledged")
        )
        return replace(counts, unacked=counts.unacked + held, acked=counts.acked + sum(self._acked.values()))


def _counts(jobs: Mapping[str, Any], dead: Mapping[str, Any] | None) -> QueueCounts:
    stats = cast("Mapping[str, Any]", jobs.get("message_stats") or {})
    ready = jobs.get("messages_ready")
    # A queue has no statistics before its first message. If none is ready either, its counters are 0.
    nothing_yet = 0 if ready == 0 else None
    return QueueCounts(
        ready=ready,
        unacked=jobs.get("messages_unacknowledged"),
        dead=dead.get("messages_ready") if dead else None,
        published=stats.get("publish", nothing_yet),
        acked=stats.get("ack", 0 if "publish" in stats else nothing_yet),
    )
