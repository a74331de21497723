"""Counts from RabbitMQ's HTTP API: everything, up to 5 s old."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

import aiohttp
from yarl import URL

from inferfleet.producer.exporter.queues import QueueCounts
from inferfleet.schemas.errors import ServiceUnreachableError
from inferfleet.schemas.names import dead_queue, job_queue
from inferfleet.wire.redis import redacted

TIMEOUT_S = 4.0
PAGE = 500
COLUMNS = "name,messages_ready,messages_unacknowledged,message_stats.publish,message_stats.ack"
NAMES = "^inferfleet[.](jobs|dead)[.]"


class ManagementQueues:
    """Asks for all pools of the AMQP URL's virtual host at once, so it finds pools that nobody named."""

    def __init__(self, management_url: str, *, amqp_url: str) -> None:
        virtual_host = unquote(urlsplit(amqp_url).path.removeprefix("/")) or "/"
        self._url = f"{_base(management_url, virtual_host)}/api/queues/{quote(virtual_host, safe='')}"
        self._shown = redacted(management_url)
        self._http: aiohttp.ClientSession | None = None

    async def counts(self, pools: Collection[str]) -> Mapping[str, QueueCounts]:
        """Count for every pool there is. See ``Queues``."""
        found = {str(queue["name"]): queue for queue in await self._all()}
        prefix = job_queue("")
        named = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        return {
            pool: _counts(found[job_queue(pool)], found.get(dead_queue(pool)))
            for pool in sorted(named | {pool for pool in pools if job_queue(pool) in found})
        }

    async def aclose(self) -> None:
        """Close the connection."""
        if self._http is not None:
            await self._http.close()

    async def _all(self) -> list[dict[str, Any]]:
        queues: list[dict[str, Any]] = []
        page = pages = 1
        while page <= pages:
            answer = await self._page(page)
            queues += cast("list[dict[str, Any]]", answer["items"])
            pages = int(answer["page_count"])
            page += 1
        return queues

    async def _page(self, number: int) -> dict[str, Any]:
        self._http = self._http or aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        query = {
            "page": str(number),
            "page_size": str(PAGE),
            "name": NAMES,
            "use_regex": "true",
            "columns": COLUMNS,
        }
        try:
            async with self._http.get(URL(self._url, encoded=True).update_query(query)) as answer:
                if answer.status in {401, 403}:
                    raise ServiceUnreachableError(
                        f"RabbitMQ's API at {self._shown} refuses the credentials; check user and "
                        "password in INFERFLEET_MANAGEMENT_URL, and that the user has the tag monitoring"
                    )
                if answer.status != 200:
                    raise ServiceUnreachableError(
                        f"RabbitMQ's API at {self._shown} answers {answer.status}; check the host and the "
                        "virtual host in INFERFLEET_AMQP_URL"
                    )
                return cast("dict[str, Any]", await answer.json())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServiceUnreachableError(
                f"RabbitMQ's API at {self._shown} does not answer ({type(error).__name__}); check "
                "INFERFLEET_MANAGEMENT_URL and that the plugin rabbitmq_management is enabled"
            ) from error


def _base(management_url: str, virtual_host: str) -> str:
    """The API's address without the virtual host that KEDA wants at its end, so that both share a Secret."""
    url, _, last = management_url.rstrip("/").rpartition("/")
    return url if unquote(last) == virtual_host else management_url.rstrip("/")


def _counts(jobs: Mapping[str, Any], dead: Mapping[str, Any] | None) -> QueueCounts:
    stats = cast("Mapping[str, Any]", jobs.get("message_stats") or {})
    ready = jobs.get("messages_ready")
    # Before its first message a queue has no statistics; a queue that is counted has had none, then.
    nothing_yet = 0 if ready == 0 else None
    return QueueCounts(
        ready=ready,
        unacked=jobs.get("messages_unacknowledged"),
        dead=dead.get("messages_ready") if dead else None,
        published=stats.get("publish", nothing_yet),
        acked=stats.get("ack", 0 if "publish" in stats else nothing_yet),
    )
