"""Submits the lines of one batch: each to the pool of its model, and for the tenant of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from inferfleet.gateway.batches.lines import no_pool
from inferfleet.gateway.gateway import Gateway
from inferfleet.producer.openai.api import OpenAIApi
from inferfleet.producer.openai.models import Route
from inferfleet.producer.openai.refusals import RefusedError
from inferfleet.producer.openai.requests import Asked
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.batch import BatchOrder
from inferfleet.schemas.errors import InvalidJobError, ServiceUnreachableError, UnknownPoolError
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.result import JobRecord, Result

NEW_KEY_S: Final = 300.0
"""How long after an order this gateway's copy of the keys may be older than the key of the order."""


class BatchJobs:
    """What a batch needs of the fleet (``inferfleet.producer.batch.lines.Jobs``).

    ``pools`` are those to which the jobs of each model have gone so far: while no worker says that it serves
    a model, its jobs go to its last pool.

    ``check`` raises ``ServiceUnreachableError`` while this gateway must not submit: if another one has the
    batch, it may have given lines up, and their jobs would run all the same.
    """

    def __init__(
        self,
        gateway: Gateway,
        order: BatchOrder,
        *,
        pool: str | None,
        pools: dict[str, str],
        check: Callable[[], None],
    ) -> None:
        self._gateway = gateway
        self._all = gateway.trusted_fleet
        self._order = order
        self._pool = pool
        self._pools = pools
        self._check = check

    async def submit(self, job: Job, /) -> Job:
        """Submit a job to the pool of its model.

        Raises:
            InvalidJobError: The job is invalid, or nobody has served its model since the batch began.
            InferfleetError: What ``Fleet.submit`` raises.

        """
        self._check()
        fleet, api = self._allowed()
        given = job.body.get("model")
        model = given if isinstance(given, str) else ""
        try:
            route, body = await self._route(api, job, model)
        except RefusedError as error:
            raise _refused(error) from error
        self._check()
        try:
            submitted = await fleet.submit(job.model_copy(update={"pool": route.pool, "body": body}))
        except RefusedError as error:
            raise _refused(error) from error
        except UnknownPoolError as error:
            if route.workers or route.pool in self._pools.values():
                # A broker that has lost its data gets its queues back from the workers.
                raise ServiceUnreachableError(str(error)) from error
            raise InvalidJobError(no_pool(route)) from error
        self._pools[model] = route.pool
        self._gateway.metrics.batch_lines_submitted.inc()
        return submitted

    async def get_many(self, jobs: Iterable[Job | str], /) -> dict[str, JobRecord | None]:
        """Read the records of jobs."""
        self._check()
        return await self._all.get_many(jobs)

    async def wait(self, job: str, /) -> Result:
        """Wait for the end of a job."""
        return await self._all.wait(job)

    async def cancel(self, job: str, /) -> JobState:
        """Cancel a job."""
        return await self._all.cancel(job)

    async def _route(self, api: OpenAIApi, job: Job, model: str) -> tuple[Route, dict[str, Any]]:
        """Choose the pool of a job. Return it with the body to submit."""
        last = self._pools.get(model)
        try:
            route, body = await _routed(api, job, self._pool)
        except RefusedError as error:
            if last is None or error.refusal.code != "model_not_found":
                raise
        else:
            if last is None or last == route.pool or not route.alias:
                return route, body
        # Heartbeats are missing, for example, while Redis or the only worker restarts.
        return await _routed(api, job, last)

    def _allowed(self) -> tuple[TenantFleet, OpenAIApi]:
        """Return what the API key of the batch allows now.

        Raises:
            InvalidJobError: The key has been revoked.
            ServiceUnreachableError: This gateway does not know the key yet.

        """
        keys, key_id = self._gateway.keys, self._order.key_id
        key = None
        if key_id is not None:
            if keys is None:
                raise ServiceUnreachableError(
                    "this gateway has no API keys, but the batch was ordered with one"
                )
            if (key := keys.get(key_id)) is None:
                age_ms = self._gateway.batches.now_ms() - self._order.created_ms
                if age_ms < NEW_KEY_S * 1000 and not keys.has_had(key_id):
                    raise ServiceUnreachableError("this gateway does not know the batch's API key yet")
                raise InvalidJobError("the API key with which this batch was ordered has been revoked")
        fleet = TenantFleet(self._all, self._order.tenant, policy=self._gateway.admission_of(key))
        return fleet, self._gateway.trusted_api.of(fleet, pools=None if key is None else key.pools)


async def _routed(api: OpenAIApi, job: Job, pool: str | None) -> tuple[Route, dict[str, Any]]:
    asked = Asked(
        endpoint=job.endpoint,
        body=dict(job.body),
        options={"idempotency_key": job.idempotency_key},
        stream=False,
        timeout_s=None,
    )
    if pool is not None:
        asked.options["pool"] = pool
    return await api.route(asked), asked.body


def _refused(error: RefusedError) -> InvalidJobError | ServiceUnreachableError:
    """Say whether the same job may be accepted later."""
    return ServiceUnreachableError(str(error)) if error.refusal.retry else InvalidJobError(str(error))
