"""Decides which jobs the bearer of an API key may submit now."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Final, cast

from pydantic_core import to_json

from inferfleet.gateway.api_keys import ApiKey
from inferfleet.producer.openai.refusals import Refusal, RefusedError
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import (
    InferfleetError,
    PartialSubmitError,
    PublishUnconfirmedError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.job import Job, Priority
from inferfleet.wire.redis.shared_limits import SharedLimits, retry_after_s

BYTES_PER_TOKEN: Final = 4
"""How many bytes of a request count as one token."""

ANSWER_TOKENS: Final = 256
"""How many tokens an answer counts for which the request sets no limit."""

FULL_RETRY_S: Final = 1
"""When to try again after a refusal because of unfinished jobs: nobody knows when one will end."""


class Admission:
    """What one key allows. The limits are shared by all gateways."""

    def __init__(self, key: ApiKey, limits: SharedLimits) -> None:
        self._key = key
        self._limits = limits

    @property
    def usual_priority(self) -> int:
        """The priority of a job whose caller asks for none."""
        return min(Priority.NORMAL, self._key.max_priority)

    @asynccontextmanager
    async def admitted(self, jobs: Sequence[Job]) -> AsyncGenerator[None]:
        """Submit jobs in the block: all, or none.

        Raises:
            RefusedError: The key does not allow it, or not now.
            ServiceUnreachableError, ServiceRefusedError: Redis, which has the limits, is away or refuses.

        """
        for job in jobs:
            self._check(job)
        ids = [job.id for job in jobs]
        await self._reserve(ids)
        try:
            await self._take("requests", len(jobs), self._key.requests_per_minute)
            await self._take("tokens", sum(map(estimated_tokens, jobs)), self._key.tokens_per_minute)
            yield
        except PublishUnconfirmedError:
            # RabbitMQ may have it.
            raise
        except (InferfleetError, RefusedError) as error:
            accepted = error.accepted if isinstance(error, PartialSubmitError) else ()
            await self._free([job_id for job_id in ids if job_id not in accepted])
            raise

    async def _reserve(self, ids: Sequence[str]) -> None:
        most = self._key.max_unfinished_jobs
        if most is None:
            return
        if len(ids) > most:
            raise _never("unfinished jobs", len(ids), most)
        if not await self._limits.reserve(self._key.id, ids, most=most):
            raise _not_now(
                "too_many_unfinished_jobs",
                f"{most:,} jobs of this API key may be unfinished, and there is no room for "
                f"{'this one' if len(ids) == 1 else 'these'}",
                FULL_RETRY_S,
            )

    async def _free(self, ids: Sequence[str]) -> None:
        if self._key.max_unfinished_jobs is not None:
            # Those that stay are found to have no record.
            with suppress(ServiceUnreachableError, ServiceRefusedError):
                await self._limits.free(self._key.id, ids)

    def _check(self, job: Job) -> None:
        key = self._key
        if key.pools is not None and job.pool not in key.pools:
            raise _forbidden(
                "pool_not_allowed",
                f"this API key may not use the pool {job.pool!r}; it may use {', '.join(key.pools)}",
            )
        if job.priority > key.max_priority:
            raise _forbidden(
                "priority_not_allowed",
                f"this API key may not use the priority {job.priority}; its highest is {key.max_priority}",
            )

    async def _take(self, what: str, amount: int, limit: int | None) -> None:
        if limit is None:
            return
        if amount > limit:
            raise _never(f"{what} a minute", amount, limit)
        if wait_s := await self._limits.take(what, self._key.id, limit=limit, amount=amount):
            raise _not_now(
                "rate_limit_exceeded",
                f"this API key has {limit:,} {what} a minute, and this request would exceed that",
                retry_after_s(wait_s),
            )


def estimated_tokens(job: Job) -> int:
    """Estimate how many tokens a job costs: those of its request, and the most that its answers may have."""
    body = job.body
    asked = -(-len(to_json(body)) // BYTES_PER_TOKEN)
    if ENDPOINTS[job.endpoint].generated is None:
        return asked
    most = body.get("max_completion_tokens") or body.get("max_tokens") or ANSWER_TOKENS
    return asked + int(most) * int(body.get("n") or 1) * _prompts(body.get("prompt"))


def _prompts(prompt: object) -> int:
    """Count the prompts of a completion; one prompt may be a list of token ids."""
    if not isinstance(prompt, list):
        return 1
    prompts = cast("list[object]", prompt)
    return len(prompts) if prompts and not isinstance(prompts[0], int) else 1


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
