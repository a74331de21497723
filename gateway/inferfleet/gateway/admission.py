"""Decides which jobs the bearer of an API key may submit now."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, cast

from pydantic_core import to_json

from inferfleet.gateway.api_keys import ApiKey
from inferfleet.producer.openai.refusals import Refusal, RefusedError
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import InferfleetError, PartialSubmitError, PublishUnconfirmedError
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
        key, ids = self._key, [job.id for job in jobs]
        if key.requests_per_minute is not None:
            await self._take("requests", len(jobs), key.requests_per_minute)
        if key.tokens_per_minute is not None:
            await self._take("tokens", sum(map(estimated_tokens, jobs)), key.tokens_per_minute)
        if key.max_unfinished_jobs is None:
            yield
            return
        if len(ids) > key.max_unfinished_jobs:
            raise _never("unfinished jobs", len(ids), key.max_unfinished_jobs)
        if not await self._limits.reserve(key.id, ids, most=key.max_unfinished_jobs):
            raise _not_now(
                "too_many_unfinished_jobs",
                f"{key.max_unfinished_jobs:,} jobs of this API key are unfinished, which is its limit",
                FULL_RETRY_S,
            )
        try:
            yield
        except PublishUnconfirmedError:
            raise
        except PartialSubmitError as error:
            await self._limits.free(key.id, [each for each in ids if each not in error.accepted])
            raise
        except InferfleetError:
            await self._limits.free(key.id, ids)
            raise

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

    async def _take(self, what: str, amount: int, limit: int) -> None:
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
