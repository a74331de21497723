"""The health map: each worker's heartbeat under a key that expires, and a list of the workers."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

import orjson
from pydantic import ValidationError

from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.names import WORKERS_KEY, worker_key
from inferfleet.wire.redis import process_scripts
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.script import Argument

logger = logging.getLogger(__name__)

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


async def read_phase(pipeline: CommandPipeline, worker_id: str) -> tuple[str, str] | None:
    """Read a worker's phase and the time of its start, of any version; ``None`` if it is not alive."""
    phase, started_at = await pipeline.execute("HMGET", worker_key(worker_id), "phase", "started_at")
    return None if phase is None else (phase.decode(), (started_at or b"").decode())


async def read_heartbeats(pipeline: CommandPipeline) -> list[Heartbeat]:
    """Read the whole map, ordered by pool and worker. Its cost does not depend on the number of jobs.

    What another version has written and this one cannot read is missing, and the log says so: a detail, or
    the whole worker.
    """
    listed: Any = await pipeline.execute("ZRANGE", WORKERS_KEY, 0, -1)
    names: list[str] = [worker_id.decode() for worker_id in listed]
    answers = [pipeline.enqueue("HGETALL", worker_key(name)) for name in names]
    entries: list[dict[bytes, bytes]] = [await answer for answer in answers]
    read = [_heartbeat(name, fields) for name, fields in zip(names, entries, strict=True) if fields]
    heartbeats = [heartbeat for heartbeat in read if heartbeat is not None]
    return sorted(heartbeats, key=lambda heartbeat: (heartbeat.pool, heartbeat.worker_id))


def _heartbeat(worker_id: str, fields: dict[bytes, bytes]) -> Heartbeat | None:
    given: dict[str, Any] = {
        name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()
    }
    for name in _NESTED & given.keys():
        with suppress(orjson.JSONDecodeError):
            given[name] = orjson.loads(given[name])
    try:
        return Heartbeat.model_validate(given)
    except ValidationError as error:
        unread = {str(problem["loc"][0]) for problem in error.errors()}
    heartbeat = None
    with suppress(ValidationError):
        heartbeat = Heartbeat.model_validate(
            {name: value for name, value in given.items() if name not in unread}
        )
    _report(worker_id, ", ".join(sorted(unread)), counts=heartbeat is not None)
    return heartbeat


@lru_cache
def _report(worker_id: str, unread: str, *, counts: bool) -> None:
    """Log what cannot be read: once, although heartbeats are read all the time."""
    logger.warning(
        "cannot read %s in the heartbeat of worker %s%s: another version of inferfleet may have written it; "
        "finish the upgrade",
        unread,
        worker_id,
        "" if counts else ", so the worker does not count",
    )
