"""Webhooks in Redis: tenants' endpoints, the jobs whose ends are told, and the events to deliver.

An event comes from the record of a job that has ended, so whoever ends a job, with whichever version, need
not know of webhooks. A job is *watched* from its submission until the events of its end are entered for its
tenant's endpoints. An event is *entered* until the endpoint has accepted it, or it is given up. Both are in
sorted sets, by the time at which somebody has to act. Who acts *claims* the entry first, by setting that time
to a later one: if it dies, somebody else acts then. So nothing is lost, but an event may be delivered twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from inferfleet.schemas.job import JobState
from inferfleet.schemas.names import (
    WEBHOOK_QUEUE_KEY,
    WEBHOOK_WATCHED_KEY,
    job_key,
    result_key,
    webhook_due_key,
    webhook_endpoint_key,
    webhook_endpoints_key,
    webhook_events_key,
)
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis import webhook_scripts
from inferfleet.wire.redis.access import Access
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.script import Argument

A = TypeVar("A")
B = TypeVar("B")

logger = logging.getLogger(__name__)

MAX_ENDPOINTS: Final = 16
"""How many endpoints a tenant may have."""

WEBHOOKS: Final = Access(
    {
        "inferfleet:{webhooks}:*": (
            *("HSET", "HSETNX", "HGET", "HMGET", "HGETALL", "HDEL", "HEXISTS", "DEL"),
            *("ZADD", "ZREM", "ZCARD", "ZSCORE", "ZRANGE"),
        ),
        "inferfleet:job:*": ("HMGET", "GET"),
    },
    reads_blocked=False,
    only_writes=False,
)
"""What a process needs that delivers webhooks. A client's rights include it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    """An endpoint of a tenant. Times are in Unix milliseconds, 0 for never.

    ``old_secret`` signs as well until ``old_secret_until_ms``. ``failing_ms`` is when it last began to accept
    nothing, and ``failure`` says how the last try failed.
    """

    id: str
    tenant: str
    name: str
    url: str
    event_types: tuple[str, ...]
    secret: str
    created_ms: int
    updated_ms: int
    old_secret: str = ""
    old_secret_until_ms: int = 0
    disabled_ms: int = 0
    failing_ms: int = 0
    failure: str = ""
    undelivered: int = 0
    """How many events it has not accepted yet."""


class WatchedJob(NamedTuple):
    """A job whose end is told to a tenant's endpoints; ``kind`` says what the tenant knows it as."""

    kind: str
    job_id: str
    tenant: str

    @property
    def member(self) -> str:
        """The entry of the job."""
        return " ".join(self)


class JobEnd(NamedTuple):
    """The end of a job. ``state`` is ``None`` without a record; ``result`` is JSON, if it was asked for."""

    state: JobState | None
    finished_ms: int
    result: bytes | None


class Claimed(NamedTuple):
    """An event to deliver, how often that was tried before, and until when it is claimed."""

    tried: int
    event: WebhookEvent
    until_ms: float = 0.0


class Settled(StrEnum):
    """What a settlement has done."""

    SETTLED = "settled"
    DISABLED = "disabled"
    """The failure has disabled the endpoint."""

    PAST = "past"
    """Somebody else has settled the delivery, or the endpoint is gone."""


class Entered(StrEnum):
    """What has become of an event for an endpoint."""

    ENTERED = "entered"
    UNWANTED = "unwanted"
    FULL = "full"
    """The endpoint has too many events that it has not accepted."""


class WebhookStore:
    """The endpoints and what has to be done for them."""

    def __init__(self, pipeline: CommandPipeline, *, clock: RedisClock | None = None) -> None:
        self._pipeline = pipeline
        self.clock = clock or pipeline.clock
        """Redis' time."""

    # Endpoints

    async def add(self, endpoint: WebhookEndpoint) -> bool:
        """Add an endpoint. Return false if its tenant has too many."""
        fields: dict[str, Argument] = {
            "tenant": endpoint.tenant,
            "name": endpoint.name,
            "url": endpoint.url,
            "event_types": " ".join(endpoint.event_types),
            "secret": endpoint.secret,
            "created_ms": endpoint.created_ms,
            "updated_ms": endpoint.updated_ms,
        }
        added = await self._pipeline.execute(
            *webhook_scripts.webhook_add(
                webhook_endpoints_key(endpoint.tenant),
                webhook_endpoint_key(endpoint.id),
                *_flat(fields),
                endpoint=endpoint.id,
                created_ms=endpoint.created_ms,
                most=MAX_ENDPOINTS,
            )
        )
        return bool(added)

    async def change(
        self,
        tenant: str,
        endpoint_id: str,
        fields: Mapping[str, Argument],
        *,
        enabled: bool | None = None,
        secret: str = "",
        old_secret_until_ms: int | None = None,
    ) -> bool:
        """Change an endpoint: fields, its secret, or whether it is enabled. Return whether there is one."""
        changed = await self._pipeline.execute(
            *webhook_scripts.webhook_change(
                webhook_endpoint_key(endpoint_id),
                webhook_due_key(endpoint_id),
                WEBHOOK_QUEUE_KEY,
                *_flat(fields),
                endpoint=endpoint_id,
                tenant=tenant,
                updated_ms=self.clock.now_ms(),
                secret=secret,
                old_secret_until_ms="" if old_secret_until_ms is None else old_secret_until_ms,
                enabled="" if enabled is None else int(enabled),
                change=secrets.token_hex(8),
            )
        )
        return bool(changed)

    async def remove(self, tenant: str, endpoint_id: str) -> bool:
        """Remove an endpoint, and what was to be delivered to it. Return whether there was one."""
        removed = await self._pipeline.execute(
            *webhook_scripts.webhook_remove(
                webhook_endpoints_key(tenant),
                webhook_endpoint_key(endpoint_id),
                webhook_events_key(endpoint_id),
                webhook_due_key(endpoint_id),
                WEBHOOK_QUEUE_KEY,
                endpoint=endpoint_id,
                tenant=tenant,
            )
        )
        return bool(removed)

    async def endpoint(self, endpoint_id: str) -> WebhookEndpoint | None:
        """Read an endpoint, whosever it is."""
        fields, undelivered = await asyncio.gather(
            self._pipeline.enqueue("HGETALL", webhook_endpoint_key(endpoint_id)),
            self._pipeline.enqueue("ZCARD", webhook_due_key(endpoint_id)),
        )
        return _endpoint(endpoint_id, fields, undelivered) if fields else None

    async def endpoints(self, tenant: str) -> list[WebhookEndpoint]:
        """Read a tenant's endpoints, the newest first."""
        ids = [each.decode() for each in reversed(await self._ids(tenant))]
        read = await asyncio.gather(*map(self.endpoint, ids))
        return [endpoint for endpoint in read if endpoint is not None]

    async def _ids(self, tenant: str) -> list[bytes]:
        ids: list[bytes] = await self._pipeline.execute("ZRANGE", webhook_endpoints_key(tenant), 0, -1)
        return ids

    # Jobs whose ends are told

    async def watch(self, jobs: Sequence[WatchedJob]) -> bool:
        """Watch jobs of one tenant for their ends. Return false, and do nothing, if it has no endpoint."""
        watched = await self._pipeline.execute(
            *webhook_scripts.webhook_watch(
                webhook_endpoints_key(jobs[0].tenant),
                WEBHOOK_WATCHED_KEY,
                *(job.member for job in jobs),
                look_ms=self.clock.now_ms(),
            )
        )
        return bool(watched)

    async def look_now(self, jobs: Sequence[WatchedJob]) -> None:
        """Let watched jobs be looked at without delay."""
        scores: list[Argument] = []
        for job in jobs:
            scores += (0, job.member)
        await self._pipeline.execute("ZADD", WEBHOOK_WATCHED_KEY, "XX", *scores)

    async def claim_watched(self, *, for_ms: int, limit: int) -> list[WatchedJob]:
        """Claim jobs to look at. Those that are not forgotten are due again after ``for_ms``."""
        due, _ = await self._claim(WEBHOOK_WATCHED_KEY, for_ms=for_ms, limit=limit)
        return _readable(lambda member: WatchedJob(*member.split(" ", 2)), due)

    async def forget(self, jobs: Sequence[WatchedJob]) -> None:
        """Stop watching jobs."""
        await self._pipeline.execute("ZREM", WEBHOOK_WATCHED_KEY, *(job.member for job in jobs))

    async def end(self, job_id: str, *, result: bool) -> JobEnd:
        """Read whether a job has ended and when, and its result if it is asked for.

        Raises:
            ValueError: This version cannot read the record.

        """
        state, finished = await self._pipeline.execute("HMGET", job_key(job_id), "state", "finished_at")
        # After the state: a job whose state is terminal has had a result.
        read = await self._pipeline.execute("GET", result_key(job_id)) if result else None
        return JobEnd(JobState(state.decode()) if state else None, int(finished or 0), read)

    async def traceparent(self, job_id: str) -> str | None:
        """Read the trace of a job if the trace is sampled; ``None`` otherwise."""
        (traceparent,) = await self._pipeline.execute("HMGET", job_key(job_id), "traceparent")
        return None if traceparent is None else traceparent.decode()

    # Events to deliver

    async def enter(self, tenant: str, event: WebhookEvent, *, most: int) -> dict[str, Entered]:
        """Enter an event for each of a tenant's endpoints that wants it, which has at most so many."""
        ids = [each.decode() for each in await self._ids(tenant)]
        answers: list[bytes] = await asyncio.gather(
            *(
                self._pipeline.enqueue(
                    *webhook_scripts.webhook_enter(
                        *_keys(endpoint_id),
                        endpoint=endpoint_id,
                        event_id=event.id,
                        event_type=event.type,
                        event=_entry(event),
                        now_ms=self.clock.now_ms(),
                        most=most,
                    )
                )
                for endpoint_id in ids
            )
        )
        return {
            endpoint_id: Entered(answer.decode()) for endpoint_id, answer in zip(ids, answers, strict=True)
        }

    async def due_endpoints(self, *, limit: int) -> dict[str, float]:
        """Read the endpoints to which something is due, and since when; the one that waits longest first."""
        return dict(await self._due(WEBHOOK_QUEUE_KEY, limit=limit))

    async def claim(self, endpoint_id: str, *, for_ms: int, limit: int) -> list[Claimed]:
        """Claim events to deliver to an endpoint. Those not settled are due again after ``for_ms``."""
        due, until_ms = await self._claim(webhook_due_key(endpoint_id), for_ms=for_ms, limit=limit)
        endpoint_key, events_key, due_key, queue_key = _keys(endpoint_id)
        requeued = self._pipeline.enqueue(
            *webhook_scripts.webhook_requeue(endpoint_key, due_key, queue_key, endpoint=endpoint_id)
        )
        events: list[bytes | None] = await self._pipeline.execute("HMGET", events_key, *due) if due else []
        await requeued
        return _readable(
            partial(_claimed, until_ms=until_ms), [event for event in events if event is not None]
        )

    async def give_back(self, endpoint_id: str, claimed: Claimed) -> None:
        """Make a claimed event that was not settled due at once, for another gateway."""
        endpoint_key, _, due_key, queue_key = _keys(endpoint_id)
        await asyncio.gather(
            self._pipeline.enqueue(
                *webhook_scripts.webhook_claim(
                    due_key, claimed.event.id, claimed.until_ms, until_ms=self.clock.now_ms()
                )
            ),
            self._pipeline.enqueue(
                *webhook_scripts.webhook_requeue(endpoint_key, due_key, queue_key, endpoint=endpoint_id)
            ),
        )

    async def drop(self, endpoint_id: str) -> int:
        """Drop the undelivered events of an endpoint that has been disabled for 30 days.

        Return how many events these were.
        """
        dropped: int = await self._pipeline.execute(
            *webhook_scripts.webhook_drop(
                *_keys(endpoint_id), endpoint=endpoint_id, now_ms=self.clock.now_ms()
            )
        )
        return dropped

    async def settle(
        self,
        endpoint_id: str,
        claimed: Claimed,
        *,
        failure: str = "",
        retry_ms: int | None = None,
        disable_after_ms: int = 0,
    ) -> Settled:
        """Record that an event was accepted, or how it failed and when to try it again; ``None`` for never.

        The failure of an endpoint that has accepted nothing for ``disable_after_ms`` disables it.
        """
        settled: bytes = await self._pipeline.execute(
            *webhook_scripts.webhook_settle(
                *_keys(endpoint_id),
                endpoint=endpoint_id,
                event_id=claimed.event.id,
                tried=claimed.tried,
                failure=failure,
                now_ms=self.clock.now_ms(),
                retry_ms="" if retry_ms is None else retry_ms,
                disable_after_ms=disable_after_ms,
            )
        )
        return Settled(settled.decode())

    async def _due(self, key: str, *, limit: int) -> list[tuple[str, float]]:
        """Read the entries that are due, with their scores."""
        due: Any = await self._pipeline.execute(
            "ZRANGE", key, "-inf", self.clock.now_ms(), "BYSCORE", "LIMIT", 0, limit, "WITHSCORES"
        )
        return [(member.decode(), float(score)) for member, score in due]

    async def _claim(self, key: str, *, for_ms: int, limit: int) -> tuple[list[str], float]:
        """Claim entries that are due. Return them, and until when they are claimed."""
        due = await self._due(key, limit=limit)
        if not due:
            return [], 0.0
        until_ms = self.clock.now_ms() + for_ms + _unlikely_twice_ms()
        entries = [each for entry in due for each in entry]
        claimed = await self._pipeline.execute(
            *webhook_scripts.webhook_claim(key, *entries, until_ms=until_ms)
        )
        return [member for (member, _), ours in zip(due, claimed, strict=True) if ours], until_ms


def _unlikely_twice_ms() -> float:
    """Return up to 8 s, in steps of 1/2048 ms, that make the end of a claim its claimer's own.

    A score of Redis is a double, so it has room for 11 bits below a millisecond of today. Those alone are too
    few: gateways that claim the same entries in one millisecond would share one of a thousand.
    """
    return random.randrange(2**24) / 2**11  # noqa: S311 - no secret


def _keys(endpoint_id: str) -> tuple[str, str, str, str]:
    return (
        webhook_endpoint_key(endpoint_id),
        webhook_events_key(endpoint_id),
        webhook_due_key(endpoint_id),
        WEBHOOK_QUEUE_KEY,
    )


def _flat(fields: Mapping[str, Argument]) -> list[Argument]:
    return [each for field in fields.items() for each in field]


def _readable(read: Callable[[A], B], entries: Sequence[A]) -> list[B]:
    """Read entries without those of another version that this one cannot read: they hold up no other."""
    found: list[B] = []
    for entry in entries:
        try:
            found.append(read(entry))
        except (ValueError, TypeError):
            logger.warning("webhooks: the entry %r cannot be read", entry)
    return found


def _claimed(text: bytes, *, until_ms: float) -> Claimed:
    tried, kind, when, object_id = text.decode().split(" ", 3)
    at_s, _, question = when.partition("/")
    return Claimed(int(tried), WebhookEvent(kind, object_id, int(at_s), question), until_ms)


def _entry(event: WebhookEvent) -> bytes:
    when = f"{event.at_s}/{event.question}" if event.question else str(event.at_s)
    return f"{event.type} {when} {event.object_id}".encode()


def _endpoint(endpoint_id: str, fields: Mapping[bytes, bytes], undelivered: int) -> WebhookEndpoint:
    read = {name.decode(): value.decode() for name, value in fields.items()}

    def number(name: str) -> int:
        return int(read.get(name, 0))

    return WebhookEndpoint(
        id=endpoint_id,
        tenant=read["tenant"],
        name=read["name"],
        url=read["url"],
        event_types=tuple(read["event_types"].split()),
        secret=read["secret"],
        created_ms=number("created_ms"),
        updated_ms=number("updated_ms"),
        old_secret=read.get("old_secret", ""),
        old_secret_until_ms=number("old_secret_until_ms"),
        disabled_ms=number("disabled_ms"),
        failing_ms=number("failing_ms"),
        failure=read.get("failure", ""),
        undelivered=undelivered,
    )
