"""The shares of a pool's tenants, in Redis: what each has been served lately, and its preferred jobs.

A job leaves the preferred ones when its worker adds its end. If nobody does, because it was cancelled while
it waited, was refused, or its worker died, a submitter finds it when its tenant submits a job that is not
preferred. Each submitter looks at most once a second.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.names import preferred_key, shares_call_key, shares_key
from inferfleet.schemas.shares import COMPETES, HALF_LIFE_S, PREFERRED_PER_SLOT, Share
from inferfleet.wire.redis import pool_scripts
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.redis.job_reading import JobReading
from inferfleet.wire.redis.pipeline import CommandPipeline

CALL_TTL_S: Final = 3600
"""For how long an addition that is sent again is recognized."""

NEW_MS: Final = 60_000
"""For how long a job without a record stays preferred: its submission may be under way."""

LOOK_AGAIN_S: Final = 1.0
"""How long a look at a tenant's preferred jobs keeps the next one away."""

MANY: Final = 32
"""With more tenants than that, the mean that a tenant is compared with may be some time old."""

MEAN_MS: Final = 100
"""How old. Redis needs a microsecond or two for each tenant, and does nothing else meanwhile."""

SLOTS: Final = 64
"""How many slots a pool is taken to have while no worker says how many there are."""

SLOTS_KEPT_S: Final = 10.0
"""How old the number of slots may be: the heartbeats of all workers say it."""


class PoolShares:
    """Places jobs. Every call raises what ``CommandPipeline.execute`` raises.

    Without ``slots``, those of each pool are read from the heartbeats of its workers.
    """

    def __init__(
        self, pipeline: CommandPipeline, *, ttl_s: int, slots: Mapping[str, int] | None = None
    ) -> None:
        self._pipeline = pipeline
        self._jobs = JobReading(pipeline)
        self._ttl_s = ttl_s
        self._look_at: dict[tuple[str, str], float] = {}
        """When the preferred jobs of a tenant in a pool may be looked at again."""
        self._slots = dict(slots or {})
        self._slots_at = -math.inf if slots is None else math.inf
        self._reading = asyncio.Lock()

    async def place(self, pool: str, tenant: str, job_id: str, *, weight: float | None = None) -> bool:
        """Say whether a job is preferred, and count it if it is. ``None`` keeps the tenant's weight."""
        most = PREFERRED_PER_SLOT * await self._slots_of(pool)
        command = pool_scripts.share_place(
            shares_key(pool),
            preferred_key(pool, tenant),
            tenant=tenant,
            job=job_id,
            weight="" if weight is None else str(weight),
            most=most,
            half_life_ms=int(HALF_LIFE_S * 1000),
            competes=COMPETES,
            many=MANY,
            mean_ms=MEAN_MS,
            ttl_s=self._ttl_s,
        )
        if await self._pipeline.execute(*command):
            return True
        return await self._forget_ended(pool, tenant) and bool(await self._pipeline.execute(*command))

    async def placed_ms(self, pool: str, tenant: str, job_id: str) -> float | None:
        """Return since when a job is preferred; ``None`` if it is not."""
        since_ms: Any = await self._pipeline.execute("ZSCORE", preferred_key(pool, tenant), job_id)
        return None if since_ms is None else float(since_ms)

    async def give_back(self, pool: str, tenant: str, job_id: str, since_ms: float) -> None:
        """Take a job's place from it, unless another caller has placed it again since ``since_ms``."""
        await self._pipeline.execute(
            *pool_scripts.share_give_back(
                shares_key(pool),
                preferred_key(pool, tenant),
                tenant=tenant,
                job=job_id,
                since_ms=since_ms,
            )
        )

    async def _slots_of(self, pool: str) -> int:
        # Those who come meanwhile wait, or thousands of first jobs would find a number that is a guess.
        async with self._reading:
            if time.monotonic() - self._slots_at >= SLOTS_KEPT_S:
                # A pool whose workers are away is expected to have as many again.
                self._slots |= await self._read_slots()
                self._slots_at = time.monotonic()
        return self._slots.get(pool) or SLOTS

    async def _read_slots(self) -> dict[str, int]:
        slots: Counter[str] = Counter()
        for worker in await read_heartbeats(self._pipeline):
            if worker.phase is WorkerPhase.READY:
                slots[worker.pool] += worker.slots
        return slots

    async def _forget_ended(self, pool: str, tenant: str) -> bool:
        """Remove preferred jobs that have ended. Return whether there were any."""
        now = time.monotonic()
        if now < self._look_at.get((pool, tenant), now):
            return False
        self._look_at = {one: at for one, at in self._look_at.items() if at > now}
        self._look_at[pool, tenant] = now + LOOK_AGAIN_S
        key = preferred_key(pool, tenant)
        found: list[tuple[bytes, float]] = await self._pipeline.execute("ZRANGE", key, 0, -1, "WITHSCORES")
        since = {job_id.decode(): at for job_id, at in found}
        states = await self._jobs.states(since)
        new_ms = self._pipeline.clock.now_ms() - NEW_MS
        ended = [
            job_id
            for job_id, at in since.items()
            if (at < new_ms if (state := states[job_id]) is None else state.terminal)
        ]
        await asyncio.gather(*(self.give_back(pool, tenant, job_id, since[job_id]) for job_id in ended))
        return bool(ended)


class Served(NamedTuple):
    """Jobs of a tenant that have ended, and their service."""

    number: int
    tenant: str
    service: int
    jobs: Sequence[str]


async def add_served(
    pipeline: CommandPipeline, pool: str, worker: str, served: Served, *, ttl_s: int
) -> None:
    """Add to what a tenant has been served. Each number of a worker is higher than those before."""
    command = pool_scripts.share_add(
        shares_key(pool),
        preferred_key(pool, served.tenant),
        shares_call_key(pool, worker),
        *served.jobs,
        tenant=served.tenant,
        number=served.number,
        call_ttl_s=CALL_TTL_S,
        work=served.service,
        half_life_ms=int(HALF_LIFE_S * 1000),
        ttl_s=ttl_s,
    )
    await pipeline.execute(*command)


async def read_shares(pipeline: CommandPipeline, pool: str) -> list[Share]:
    """Read the shares of a pool's tenants, as ``share_place`` computes them; the best served comes first."""
    stored: dict[bytes, bytes] = await pipeline.execute("HGETALL", shares_key(pool))
    now_ms = pipeline.clock.now_ms()
    read: list[tuple[str, float, float, float, float]] = []
    for tenant, text in stored.items():
        if not tenant:
            # What was last computed of all.
            continue
        work, jobs, preferred, weight, at_ms = map(float, text.split())
        left = 0.5 ** (max(now_ms - at_ms, 0) / (HALF_LIFE_S * 1000))
        read.append((tenant.decode(), work * left, jobs * left, preferred * left, weight))
    all_work, all_jobs = sum(work for _, work, *_ in read), sum(jobs for _, _, jobs, *_ in read)
    of_all = all_work / all_jobs if all_jobs >= 0.01 else 1.0
    shares = [
        Share(tenant, work, (work + preferred * (work / jobs if jobs >= 0.01 else of_all)) / weight)
        for tenant, work, jobs, preferred, weight in read
    ]
    return sorted(shares, key=lambda share: share.per_weight, reverse=True)
