"""Submits the lines of one batch: each to the pool of its model, and for the tenant of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from inferfleet.gateway.admission import Admission
from inferfleet.gateway.batches.lines import no_pool
from inferfleet.gateway.gateway import Gateway
from inferfleet.producer.openai.api import OpenAIApi
from inferfleet.producer.openai.refusals import RefusedError
from inferfleet.producer.openai.requests import Asked
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.batch import BatchOrder
from inferfleet.schemas.errors import InvalidJobError, ServiceUnreachableError, UnknownPoolError
from inferfleet.schemas.job import Job, JobState
from inferfleet.schemas.result import JobRecord, Result


class BatchJobs:
    """What a batch needs of the fleet (``inferfleet.producer.batch.lines.Jobs``).

    ``check`` raises ``ServiceUnreachableError`` while the batch must not go on: if another gateway has it,
    jobs would run that have been given up.
    """

    def __init__(
        self, gateway: Gateway, order: BatchOrder, *, pool: str | None, check: Callable[[], None]
    ) -> None:
        self._gateway = gateway
        self._all = gateway.trusted_fleet
        self._order = order
        self._pool = pool
        self._check = check

    async def submit(self, job: Job, /) -> Job:
        """Submit a job to the pool of its model.

        Raises:
            InvalidJobError: The job is invalid, or nobody serves its model.
            InferfleetError: What ``Fleet.submit`` raises.

        """
        self._check()
        fleet, api = self._allowed()
        asked = Asked(
            endpoint=job.endpoint,
            body=dict(job.body),
            options={"idempotency_key": job.idempotency_key},
            stream=False,
            timeout_s=None,
        )
        if self._pool is not None:
            asked.options["pool"] = self._pool
        try:
            route = await api.route(asked)
        except RefusedError as error:
            raise _refused(error) from error
        self._check()
        try:
            return await fleet.submit(job.model_copy(update={"pool": route.pool, "body": asked.body}))
        except RefusedError as error:
            raise _refused(error) from error
        except UnknownPoolError as error:
            if route.workers:
                # A broker that has lost its data gets its queues back from the workers.
                raise ServiceUnreachableError(str(error)) from error
            raise InvalidJobError(no_pool(route)) from error

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

    def _allowed(self) -> tuple[TenantFleet, OpenAIApi]:
        """Return what the API key of the batch allows, as it is by now.

        Raises:
            InvalidJobError: The key has been revoked.

        """
        keys, key_id = self._gateway.keys, self._order.key_id
        key = None
        if keys is not None and key_id is not None and (key := keys.get(key_id)) is None:
            raise InvalidJobError("the API key that ordered this batch has been revoked")
        policy = None if key is None else Admission(key, self._gateway.limits)
        fleet = TenantFleet(self._all, self._order.tenant, policy=policy)
        return fleet, self._gateway.trusted_api.of(fleet, pools=None if key is None else key.pools)


def _refused(error: RefusedError) -> InvalidJobError | ServiceUnreachableError:
    """Say whether the same job may be accepted later."""
    return ServiceUnreachableError(str(error)) if error.refusal.retry else InvalidJobError(str(error))
