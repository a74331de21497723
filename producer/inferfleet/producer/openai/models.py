"""Finds the pool that answers for a model.

A model is known if a live worker serves it, also as a LoRA adapter, or if the configuration says which pool
does: then its pool may have no worker and still accept jobs. The name of a pool stands for whatever model its
workers serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from inferfleet.producer.job_making import check_pool
from inferfleet.producer.openai.refusals import not_found
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import DEFAULT_POOL, Job
from inferfleet.schemas.rollout import RolloutRule

VALID_S: Final = 1.0
"""For how long the heartbeats are not read again, also when they cannot be read."""


class ReadRules(Protocol):
    """``read_rules`` of one fleet."""

    async def __call__(self) -> Mapping[str, RolloutRule]:
        """Return the rules of all rollouts, by the pools whose jobs they split."""
        ...


class ReadHeartbeats(Protocol):
    """``Fleet.workers``."""

    async def __call__(self) -> list[Heartbeat]:
        """Read the heartbeats of all live workers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The pool of a request. ``alias`` says that the request named the pool instead of a model.

    ``workers`` is how many live workers may get the job. If a rollout splits the pool, and only one of its
    two pools has any, that depends on the job: ``rule`` says on which side it is, and ``canary_workers``
    whether the workers are those of the canary pool.
    """

    pool: str
    workers: int
    alias: bool = False
    rule: RolloutRule | None = None
    canary_workers: bool = False

    def of(self, job: Job) -> Route:
        """Return the route with the workers that may get this job."""
        if self.rule is None or self.rule.takes(job) is self.canary_workers:
            return self
        return replace(self, workers=0)


class Models:
    """The models and pools of a fleet. ``pools`` maps models to their pools, whoever serves them now."""

    def __init__(
        self,
        workers: ReadHeartbeats,
        *,
        rules: ReadRules | None = None,
        pools: Mapping[str, str] | None = None,
        pool: str = DEFAULT_POOL,
    ) -> None:
        self._read = workers
        self._read_rules = rules
        self._rules: Mapping[str, RolloutRule] = {}
        self._pools = dict(pools or {})
        self._pool = pool
        self._until = 0.0
        self._reading: asyncio.Task[Sequence[Heartbeat]] | None = None

    async def route(
        self,
        model: object,
        *,
        pool: str | None,
        known: str | None = None,
        allowed: Collection[str] | None = None,
    ) -> Route:
        """Return the pool for a model; ``pool`` is the caller's choice, which counts more.

        Of several pools that serve the model, one that is ``allowed`` is chosen; ``None`` allows all.

        ``known`` is the pool that an earlier request like this one had. A model with the name of its pool is
        an alias whether or not a worker serves it now, so that equal requests make equal jobs.

        Raises:
            RefusedError: No pool is known to serve the model.

        """
        alive = await self._alive()
        if pool is None and isinstance(model, str) and model:
            pool = known or self._pools.get(model) or self._serving(model, alive, allowed)
            if pool is None or pool == model:
                return self._named(model, alive)
        return self._route(self._pool if pool is None else pool, alive)

    async def list(self, allowed: Collection[str] | None = None) -> list[dict[str, Any]]:
        """List the models and pools as OpenAI does, with each one's pool and number of live workers.

        Those of pools that are not ``allowed`` are left out; ``None`` allows all.
        """
        alive = await self._alive()
        pools: dict[str, str] = {worker.pool: worker.pool for worker in alive}
        for worker in reversed(alive):
            pools |= {name: self._asked(name, worker, alive) for name in (*worker.adapters, worker.model)}
        pools |= self._pools
        return [
            _listed(name, pool, self._workers(pool, alive))
            for name, pool in sorted(pools.items())
            if allowed is None or pool in allowed
        ]

    async def get(self, name: str, allowed: Collection[str] | None = None) -> dict[str, Any]:
        """Return one of them.

        Raises:
            RefusedError: There is none with this name.

        """
        for listed in await self.list(allowed):
            if listed["id"] == name:
                return listed
        raise _unknown(name)

    def _serving(self, model: str, alive: Sequence[Heartbeat], allowed: Collection[str] | None) -> str | None:
        pools = [self._asked(model, worker, alive) for worker in alive if _serves(worker, model)]
        if allowed is not None:
            pools = [pool for pool in pools if pool in allowed] or pools
        return self._pool if self._pool in pools else next(iter(pools), None)

    def _asked(self, model: str, worker: Heartbeat, alive: Sequence[Heartbeat]) -> str:
        """Return the pool to submit to for a model that a worker serves.

        For a canary pool that is the pool of its rollout, unless the jobs that stay there get another
        model.
        """
        for pool, rule in self._rules.items():
            if rule.to == worker.pool and (
                rule.weight == 100 or any(other.pool == pool and _serves(other, model) for other in alive)
            ):
                return pool
        return worker.pool

    def _workers(self, pool: str, alive: Sequence[Heartbeat]) -> Sequence[Heartbeat]:
        """Return the workers that may get a job that is submitted to a pool."""
        rule = self._rules.get(pool)
        pools = {pool} if rule is None or not rule.weight else {pool, rule.to}
        return [worker for worker in alive if worker.pool in pools]

    def _route(self, pool: str, alive: Sequence[Heartbeat], *, alias: bool = False) -> Route:
        workers = self._workers(pool, alive)
        served = {worker.pool for worker in workers}
        rule = self._rules.get(pool) if len(served) == 1 else None
        return Route(
            pool=pool, workers=len(workers), alias=alias, rule=rule, canary_workers=pool not in served
        )

    def _named(self, name: str, alive: Sequence[Heartbeat]) -> Route:
        try:
            check_pool(name)
        except InvalidJobError:
            raise _unknown(name) from None
        return self._route(name, alive, alias=True)

    async def _alive(self) -> Sequence[Heartbeat]:
        now = asyncio.get_running_loop().time()
        if self._reading is None or (self._reading.done() and now >= self._until):
            self._reading = asyncio.create_task(self._read_once())
        # All who wait share how it ends: one after the other, they would wait for a timeout each.
        return await asyncio.shield(self._reading)

    async def _read_once(self) -> Sequence[Heartbeat]:
        try:
            if self._read_rules is not None:
                self._rules = await self._read_rules()
            return await self._read()
        finally:
            self._until = asyncio.get_running_loop().time() + VALID_S


def _serves(worker: Heartbeat, model: str) -> bool:
    return model == worker.model or model in worker.adapters


def _unknown(name: str) -> Exception:
    return not_found(
        f"the model {name[:128]!r} is unknown: no live worker serves it; GET /v1/models lists those that are",
        code="model_not_found",
        param="model",
    )


def _listed(name: str, pool: str, workers: Sequence[Heartbeat]) -> dict[str, Any]:
    created = min((int(worker.started_at.timestamp()) for worker in workers), default=0)
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "inferfleet",
        "pool": pool,
        "workers": len(workers),
    }
