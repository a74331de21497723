"""The health map: each worker's heartbeat under a key that expires."""

from __future__ import annotations

import asyncio
from typing import Any

from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.names import WORKER_KEYS, worker_key
from inferfleet.wire.pipeline import CommandPipeline
from inferfleet.wire.scripts import Argument


async def write_heartbeat(pipeline: CommandPipeline, heartbeat: Heartbeat, *, ttl_s: float) -> None:
    """Write a worker's entry; it stays for ``ttl_s`` seconds."""
    key = worker_key(heartbeat.worker_id)
    fields: list[Argument] = []
    for name, value in heartbeat.model_dump(mode="json").items():
        fields += (name, value)
    await asyncio.gather(
        pipeline.enqueue("HSET", key, *fields), pipeline.enqueue("PEXPIRE", key, int(ttl_s * 1000))
    )


async def forget_heartbeat(pipeline: CommandPipeline, worker_id: str) -> None:
    """Take a worker that leaves off the map."""
    await pipeline.execute("DEL", worker_key(worker_id))


async def read_heartbeats(pipeline: CommandPipeline) -> list[Heartbeat]:
    """Read the whole map, ordered by pool and worker."""
    keys: list[bytes] = []
    cursor = b"0"
    while True:
        answer: Any = await pipeline.execute("SCAN", cursor, "MATCH", WORKER_KEYS, "COUNT", 1000)
        cursor, found = answer
        keys += found
        if int(cursor) == 0:
            break
    answers = [pipeline.enqueue("HGETALL", key) for key in keys]
    entries: list[dict[bytes, bytes]] = [await answer for answer in answers]
    heartbeats = [
        Heartbeat.model_validate({name.decode(): value.decode() for name, value in fields.items()})
        for fields in entries
        if fields
    ]
    return sorted(heartbeats, key=lambda heartbeat: (heartbeat.pool, heartbeat.worker_id))
