"""The health map: each worker's heartbeat under a key that expires, and a list of the workers."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson

from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.names import WORKERS_KEY, worker_key
from inferfleet.wire.redis import process_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.script import Argument

FORGOTTEN_AFTER_S = 3600
"""How long a worker without a heartbeat stays on the list; readers ignore it."""

_NESTED: Final = frozenset({"adapters", "answers", "ended", "mean_job", "swap"})
"""The fields that are JSON."""


async def write_heartbeat(pipeline: CommandPipeline, heartbeat: Heartbeat, *, ttl_s: float) -> None:
    """Write a worker's heartbeat, which expires after ``ttl_s`` seconds. Also update the clock."""
    key = worker_key(heartbeat.worker_id)
    fields: list[Argument] = []
    for name, value in heartbeat.model_dump(mode="json", exclude_none=True).items():
        fields += (name, orjson.dumps(value) if name in _NESTED else value)
    await asyncio.gather(
        pipeline.enqueue("HSET", key, *fields),
        pipeline.enqueue("PEXPIRE", key, int(ttl_s * 1000)),
        pipeline.enqueue(
            *process_scripts.seen(WORKERS_KEY, member=heartbeat.worker_id, listed_s=FORGOTTEN_AFTER_S)
        ),
        pipeline.learn_time(),
    )


async def forget_heartbeat(pipeline: CommandPipeline, worker_id: str) -> None:
    """Remove an exiting worker from the map."""
    await asyncio.gather(
        pipeline.enqueue("DEL", worker_key(worker_id)), pipeline.enqueue("ZREM", WORKERS_KEY, worker_id)
    )


async def read_phase(pipeline: CommandPipeline, worker_id: str) -> tuple[WorkerPhase, str] | None:
    """Read a worker's phase and the time of its start; ``None`` if the worker is not alive."""
    phase, started_at = await pipeline.execute("HMGET", worker_key(worker_id), "phase", "started_at")
    return None if phase is None else (WorkerPhase(phase.decode()), started_at.decode())


async def read_heartbeats(pipeline: CommandPipeline) -> list[Heartbeat]:
    """Read the whole map, ordered by pool and worker. Its cost does not depend on the number of jobs."""
    listed: Any = await pipeline.execute("ZRANGE", WORKERS_KEY, 0, -1)
    answers = [pipeline.enqueue("HGETALL", worker_key(worker_id.decode())) for worker_id in listed]
    entries: list[dict[bytes, bytes]] = [await answer for answer in answers]
    heartbeats = [_heartbeat(fields) for fields in entries if fields]
    return sorted(heartbeats, key=lambda heartbeat: (heartbeat.pool, heartbeat.worker_id))


def _heartbeat(fields: dict[bytes, bytes]) -> Heartbeat:
    return Heartbeat.model_validate(
        {
            name.decode(): orjson.loads(value) if name.decode() in _NESTED else value.decode()
            for name, value in fields.items()
        }
    )
