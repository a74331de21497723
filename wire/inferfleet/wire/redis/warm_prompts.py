"""Which worker has the beginning of a prompt in its prefix cache: a key for each beginning, in its pool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from inferfleet.schemas.job import Job
from inferfleet.schemas.names import warm_prompt_key
from inferfleet.schemas.prompt_beginnings import beginnings
from inferfleet.wire.redis.pipeline import CommandPipeline

WARM_PROMPT_TTL_S = 300
"""How long a beginning counts as cached after a job with it has ended. Nobody tells what a cache drops."""


class WarmPrompts:
    """Knows which worker was the last to answer a prompt with a beginning, of at least ``least`` chars."""

    def __init__(self, pipeline: CommandPipeline, *, least: int) -> None:
        self._pipeline = pipeline
        self._least = least

    async def find(self, job: Job) -> str:
        """Return the routing key of the worker with the longest beginning of the prompt; ``""`` if none.

        Raises:
            ServiceUnreachableError: Redis cannot be reached.
            ServiceRefusedError: Redis refuses the command.

        """
        keys = [warm_prompt_key(job.pool, name) for name in beginnings(job, least=self._least)]
        found = await asyncio.gather(*(self._pipeline.enqueue("GET", key) for key in keys))
        return next((routing_key.decode() for routing_key in found if routing_key), "")

    async def note(self, pool: str, names: Iterable[str], routing_key: str) -> None:
        """Note that the worker with this routing key has just answered prompts with these beginnings.

        Raises:
            ServiceUnreachableError: Redis cannot be reached.
            ServiceRefusedError: Redis refuses the command.

        """
        keys = [warm_prompt_key(pool, name) for name in names]
        await asyncio.gather(
            *(self._pipeline.enqueue("SET", key, routing_key, "EX", WARM_PROMPT_TTL_S) for key in keys)
        )
