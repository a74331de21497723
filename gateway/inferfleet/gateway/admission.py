"""Decides which jobs the bearer of an API key may submit now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Final

from pydantic_core import to_json

from inferfleet.gateway.api_keys import ApiKey
from inferfleet.producer.openai.refusals import Refusal, RefusedError
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.job import Job, Priority
from inferfleet.schemas.retrieval import CHUNK_CHARS
from inferfleet.schemas.work import BYTES_PER_TOKEN, most_tokens
from inferfleet.wire.redis.shared_limits import Cost, SharedLimits, retry_after_s

ANSWER_TOKENS: Final = 256
"""How many tokens an answer counts for which the request sets no limit."""

FULL_RETRY_S: Final = 1
"""When to try again after a refusal because of unfinished jobs: nobody knows when one will end."""


class Admission:
    """What one key allows. The limits are shared by all gateways.

    ``limited`` is called with the name of each limit that refuses something, and ``demoted`` for each job
    that gets a lower priority.
    """

    def __init__(
        self,
        key: ApiKey,
        limits: SharedLimits,
        *,
        limited: Callable[[str], None],
        demoted: Callable[[], None],
    ) -> None:
        self._key = key
        self._limits = limits
        self._limited = limited
        self._demoted = demoted

    @property
    def usual_priority(self) -> int:
        """The priority of a job whose caller asks for none."""
        return min(Priority.NORMAL, self._key.max_priority)

    @property
    def weight(self) -> float:
        """The weight of the key's tenant."""
        return 1.0 if self._key.weight is None else self._key.weight

    def check(self, jobs: Sequence[Job]) -> None:
        """Make sure that the key may ever submit such jobs.

        Raises:
            RefusedError: It may not use the pool or the priority of one.

        """
        for job in jobs:
            # A rollout's canary pool needs no right of its own: what was asked for counts.
            self._check(job.submitted_to or job.pool, job.priority)

    @asynccontextmanager
    async def admitted(self, jobs: Sequence[Job]) -> AsyncGenerator[set[str]]:
        """Submit jobs in the block: all, or none. Put the ids of those into the set that may run.

        The others give their places back.

        Raises:
            RefusedError: The key does not allow it, or not now.
            ServiceUnreachableError, ServiceRefusedError: Redis, which has the limits, is away or refuses.

        """
        costs = self._costs(jobs)
        ids = [job.id for job in jobs]
        submitted: set[str] = set()
        await self._reserve(ids)
        try:
            await self._take(costs)
            yield submitted
        except asyncio.CancelledError:
            # Nobody knows which of them RabbitMQ has.
            submitted.update(ids)
            raise
        finally:
            await self._free([job_id for job_id in ids if job_id not in submitted])

    async def run_priority(self, queue: str, priority: int | None) -> int | None:
        """Admit a run of an agent, which counts as one request, and return its priority.

        ``None`` is that of its agent, which only a key gets that may use all priorities. The queue must be
        one of the key's pools, if it has only some: it is named as they are.

        Raises:
            RefusedError: The key does not allow it, or not now.
            ServiceUnreachableError, ServiceRefusedError: Redis, which has the limits, is away or refuses.

        """
        if priority is None and self._key.max_priority < Priority.URGENT:
            priority = self.usual_priority
        self._check(queue, 0 if priority is None else priority)
        if (limit := self._key.requests_per_minute) is not None:
            await self._take([Cost("requests", 1, limit)])
        return priority

    async def placed(self, jobs: Sequence[Job]) -> list[Job]:
        """Return admitted jobs with the priority that they get: lower by one beyond the key's guarantee.

        So they wait behind what others are guaranteed. Jobs of the priority ``batch`` and below do so anyway:
        they keep their priority, and take nothing of the guarantee.

        Raises:
            ServiceUnreachableError, ServiceRefusedError: Redis, which has the limits, is away or refuses.

        """
        limit = self._key.guaranteed_tokens_per_minute
        if limit is None:
            return [*jobs]

        async def place(job: Job) -> Job:
            if job.priority <= Priority.BATCH:
                return job
            tokens = estimated_tokens(job)
            if await self._limits.guaranteed(self._key.id, tokens, per_minute=limit):
                return job
            self._demoted()
            return job.model_copy(update={"priority": job.priority - 1})

        return [*await asyncio.gather(*map(place, jobs))]

    async def _reserve(self, ids: Sequence[str]) -> None:
        most = self._key.max_unfinished_jobs
        if most is None:
            return
        if len(ids) > most:
            self._limited("unfinished_jobs")
            raise _never("unfinished jobs", len(ids), most)
        if not await self._limits.reserve(self._key.id, ids, most=most):
            self._limited("unfinished_jobs")
            raise _not_now(
                "too_many_unfinished_jobs",
                f"{most:,} jobs of this API key may be unfinished, and there is no room for "
                f"{'this one' if len(ids) == 1 else 'these'}",
                FULL_RETRY_S,
            )

    async def _free(self, ids: Sequence[str]) -> None:
        if ids and self._key.max_unfinished_jobs is not None:
            # Those that stay are found to have no record.
            with suppress(ServiceUnreachableError, ServiceRefusedError):
                await self._limits.free(self._key.id, ids)

    def _check(self, pool: str, priority: int) -> None:
        key = self._key
        if key.pools is not None and pool not in key.pools:
            raise _forbidden(
                "pool_not_allowed",
                f"this API key may not use the pool {pool!r}; it may use {', '.join(key.pools)}",
            )
        if priority > key.max_priority:
            raise _forbidden(
                "priority_not_allowed",
                f"this API key may not use the priority {priority}; its highest is {key.max_priority}",
            )

    def _costs(self, jobs: Sequence[Job]) -> list[Cost]:
        """Return what jobs take of what the key has a minute."""
        costs: list[Cost] = []
        if (limit := self._key.tokens_per_minute) is not None:
            costs.append(Cost("tokens", sum(map(estimated_tokens, jobs)), limit))
        if (limit := self._key.requests_per_minute) is not None:
            costs.append(Cost("requests", len(jobs), limit))
        for cost in costs:
            if cost.amount > cost.limit:
                self._limited(cost.what)
                raise _never(f"{cost.what} a minute", cost.amount, cost.limit)
        return costs

    async def _take(self, costs: Sequence[Cost]) -> None:
        if (lacking := await self._limits.take(self._key.id, costs)) is not None:
            self._limited(lacking.cost.what)
            raise _not_now(
                "rate_limit_exceeded",
                f"this API key has {lacking.cost.limit:,} {lacking.cost.what} a minute, and this request "
                "would exceed that",
                retry_after_s(lacking.wait_s),
            )


def estimated_tokens(job: Job) -> int:
    """Estimate how many tokens a checked job costs: those of its request, and the most of its answers.

    Passages that it retrieves count as chunks of the usual size.
    """
    body = job.body
    size = len(to_json(body))
    if job.retrieve is not None:
        size += job.retrieve.k * CHUNK_CHARS
    tokens = -(-size // BYTES_PER_TOKEN)
    return tokens + (most_tokens(job.endpoint, body, each=ANSWER_TOKENS) or 0)


def _forbidden(code: str, message: str) -> RefusedError:
    return RefusedError(Refusal(status=HTTPStatus.FORBIDDEN, code=code, message=message))


def _never(what: str, amount: int, limit: int) -> RefusedError:
    return RefusedError(
        Refusal(
            status=HTTPStatus.TOO_MANY_REQUESTS,
            code="request_exceeds_limit",
            message=f"this request counts as {amount:,} {what}, and this API key never has more than "
            f"{limit:,}: send a smaller one",
        )
    )


def _not_now(code: str, message: str, after_s: int) -> RefusedError:
    return RefusedError(
        Refusal(status=HTTPStatus.TOO_MANY_REQUESTS, code=code, message=message, retry=True, after_s=after_s)
    )
