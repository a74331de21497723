"""Batches of the gateways: their records, and which gateway works on which of them.

A batch has one runner at a time. It holds the batch while it renews its lease; another gateway may take the
batch over once the lease has run out. Every change carries the runner's token, so no change by a
runner that has lost its batch takes effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, cast

import orjson

from inferfleet.schemas.batch import BatchOrder, BatchProblem, BatchProgress, BatchRecord, BatchState
from inferfleet.schemas.names import BATCHES_KEY, batch_key, tenant_batches_key, tenant_open_batches_key
from inferfleet.wire.redis import batch_scripts, process_scripts
from inferfleet.wire.redis.pages import Page, read_page
from inferfleet.wire.redis.pipeline import CommandPipeline

OPEN_AT_ONCE: Final = 10_000
"""How many open batches a gateway looks at, those with the next deadlines first."""


NEW_MS: Final = 60_000
"""For how long a batch that gateways do not work on keeps its place: it may be about to be recorded."""

PLACE_TTL_S: Final = 90 * 24 * 3600
"""How long the places of a tenant stay after the last one was reserved: longer than a batch is open."""


class BatchLostError(Exception):
    """Another runner has the batch, or the batch is gone."""


class BatchRecords:
    """Reads and writes the records of batches."""

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline

    def now_ms(self) -> int:
        """Return Redis' time."""
        return self._pipeline.clock.now_ms()

    async def create(self, order: BatchOrder, *, ttl_s: int) -> None:
        """Record a batch that has a place, for the gateways to work on.

        It is kept for ``ttl_s`` after its deadline. If this is interrupted, the batch may or may not exist;
        if it runs, it is listed.
        """
        key = batch_key(order.id)
        kept_s = (order.deadline_ms - order.created_ms) // 1000 + ttl_s
        await asyncio.gather(
            self._pipeline.execute("HSETNX", key, "order", order.model_dump_json()),
            self._pipeline.execute("EXPIRE", key, kept_s),
        )
        await self._pipeline.execute("ZADD", tenant_batches_key(order.tenant), 0, order.id)
        await self._pipeline.execute("ZADD", BATCHES_KEY, order.deadline_ms, order.id)

    async def reserve(self, tenant: str, batch_id: str, *, most: int) -> bool:
        """Reserve a place for a batch among the tenant's open ones. Return whether there is one."""
        if not (present := await self._reserve(tenant, batch_id, most)):
            return True
        if not (ended := await self._ended(present)):
            return False
        await self._pipeline.execute("ZREM", tenant_open_batches_key(tenant), *ended)
        return not await self._reserve(tenant, batch_id, most)

    async def _reserve(self, tenant: str, batch_id: str, most: int) -> dict[str, float]:
        """Reserve a place. If there is none, return the batches that have one, and since when."""
        key = tenant_open_batches_key(tenant)
        command = process_scripts.reserve(key, batch_id, most=most, ttl_s=PLACE_TTL_S, last=-1)
        answer: list[bytes] = await self._pipeline.execute(*command)
        return {each.decode(): float(since) for each, since in zip(answer[::2], answer[1::2], strict=True)}

    async def _ended(self, places: Mapping[str, float]) -> list[str]:
        states, scores = await asyncio.gather(
            asyncio.gather(*(self._pipeline.execute("HGET", batch_key(each), "state") for each in places)),
            asyncio.gather(*(self._pipeline.execute("ZSCORE", BATCHES_KEY, each) for each in places)),
        )
        new_ms = self.now_ms() - NEW_MS
        return [
            each
            for (each, since), state, score in zip(places.items(), states, scores, strict=True)
            if (state is not None and BatchState(state.decode()).terminal)
            or (score is None and since < new_ms)
        ]

    async def read(self, batch_id: str, *, tenant: str) -> BatchRecord | None:
        """Read a batch; ``None`` if the tenant has no such batch."""
        record = _record(await self._pipeline.execute("HGETALL", batch_key(batch_id)))
        return record if record is not None and record.order.tenant == tenant else None

    async def page(self, tenant: str, *, after: str | None, limit: int) -> Page[BatchRecord]:
        """Read the tenant's batches, the newest first, from behind the id ``after``."""
        return await read_page(
            self._pipeline,
            tenant_batches_key(tenant),
            lambda batch_id: self.read(batch_id, tenant=tenant),
            after=after,
            limit=limit,
        )

    async def cancel(self, batch_id: str) -> None:
        """Ask the runner of a batch to cancel it, unless the batch is being finished or has ended."""
        now_ms = self.now_ms()
        state: bytes = await self._pipeline.execute(
            *batch_scripts.batch_cancel(batch_key(batch_id), at_ms=now_ms)
        )
        if state.decode() == BatchState.CANCELLING:
            # It is due at once, as if its deadline had passed.
            await self._pipeline.execute("ZADD", BATCHES_KEY, "LT", now_ms, batch_id)

    async def open(self) -> dict[str, int]:
        """Return when each batch to work on has to end, by its id, the earliest first."""
        pairs: Any = await self._pipeline.execute("ZRANGE", BATCHES_KEY, 0, OPEN_AT_ONCE - 1, "WITHSCORES")
        return {batch_id.decode(): int(score) for batch_id, score in pairs}

    async def order(self, batch_id: str) -> BatchOrder | None:
        """Read the order of a batch; ``None`` if the batch is gone.

        Raises:
            ValueError: It cannot be read.

        """
        order: bytes | None = await self._pipeline.execute("HGET", batch_key(batch_id), "order")
        return None if order is None else BatchOrder.model_validate_json(order)

    async def claim(self, batch_id: str, *, runner: str, lease_s: float) -> BatchRecord | None:
        """Claim a batch; ``None`` if another runner has it, or it is gone."""
        command = batch_scripts.batch_claim(
            batch_key(batch_id), runner=runner, lease_ms=_milliseconds(lease_s)
        )
        return _record(await self._pipeline.execute(*command))

    async def change(
        self,
        batch_id: str,
        *,
        runner: str,
        lease_s: float,
        state: BatchState | None = None,
        **fields: BatchProgress | tuple[BatchProblem, ...] | Mapping[str, str] | str | None,
    ) -> BatchState:
        """Change a batch, and renew its lease. Return its state afterwards.

        A batch that is being cancelled can only become cancelled.

        Raises:
            BatchLostError: Another runner has the batch.

        """
        given = [
            part for name, value in fields.items() if value is not None for part in (name, _written(value))
        ]
        answer: bytes = await self._pipeline.execute(
            *batch_scripts.batch_change(
                batch_key(batch_id),
                *given,
                runner=runner,
                lease_ms=_milliseconds(lease_s),
                new_state=state or "",
                at_ms=self.now_ms(),
            )
        )
        if not answer:
            raise BatchLostError(batch_id)
        return BatchState(answer.decode())

    async def close(self, batch_id: str) -> None:
        """Remove a batch that has ended, or is gone, from those to work on."""
        await self._pipeline.execute("ZREM", BATCHES_KEY, batch_id)


def _written(value: BatchProgress | tuple[BatchProblem, ...] | Mapping[str, str] | str) -> str | bytes:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return orjson.dumps(value)
    if isinstance(value, BatchProgress):
        return value.model_dump_json()
    return orjson.dumps([problem.model_dump() for problem in value])


def _record(fields: Any) -> BatchRecord | None:
    # HGETALL replies with a map, a script with a list.
    pairs = cast("dict[bytes, bytes]", fields if isinstance(fields, dict) else _paired(fields))
    texts: Mapping[str, bytes] = {name.decode(): value for name, value in pairs.items()}
    if "order" not in texts:
        return None
    since_ms = {state: int(texts[name]) for state in BatchState if (name := f"{state}_ms") in texts}
    given: dict[str, Any] = {
        name: orjson.loads(texts[name])
        for name in ("order", "progress", "problems", "pools")
        if name in texts
    }
    given |= {
        name: texts[name].decode()
        for name in ("state", "expiring", "output_file_id", "error_file_id")
        if name in texts
    }
    return BatchRecord.model_validate({**given, "since_ms": since_ms})


def _paired(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
