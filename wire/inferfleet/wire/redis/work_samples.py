"""Samples the unfinished jobs of a pool to estimate how much work they are, however many there are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from inferfleet.schemas.job import JobState
from inferfleet.schemas.names import job_key, open_key
from inferfleet.schemas.work import JobSize, WorkDone
from inferfleet.wire.redis.pipeline import CommandPipeline

SAMPLED: Final = 256
"""How many jobs to read. The mean of so many is off by a sixteenth of their standard deviation, mostly."""


class SampledJob(NamedTuple):
    """An unfinished job: whether it runs, its size, and the tokens that are in its journal."""

    running: bool
    size: JobSize
    generated: int


async def sample_work(pipeline: CommandPipeline, pool: str, counts: Mapping[int, int]) -> list[SampledJob]:
    """Read some of the unfinished jobs of a pool: of each priority, some of the ``counts`` oldest.

    They are spread evenly over the time of their submission, and each priority has its share. Jobs whose
    records do not have their size are left out, as those of older versions.
    """
    counts = {priority: count for priority, count in counts.items() if count > 0}
    total = sum(counts.values())
    ids = await asyncio.gather(
        *(
            pipeline.enqueue("ZRANGE", open_key(pool, priority), rank, rank)
            for priority, count in counts.items()
            for rank in _ranks(count, -(-SAMPLED * count // total))
        )
    )
    keys = [job_key(job_id.decode()) for (job_id,) in filter(None, ids)]
    records = await asyncio.gather(
        *(pipeline.enqueue("HMGET", key, "state", "size", "tokens") for key in keys)
    )
    return [
        SampledJob(state == JobState.RUNNING.encode(), job_size, int(tokens or 0))
        for state, size, tokens in records
        if size is not None and (job_size := JobSize.decoded(size.decode())) is not None
    ]


def mean_work(jobs: Iterable[SampledJob], done: WorkDone) -> float | None:
    """Return the mean of the work that jobs are expected to be; ``None`` without jobs."""
    work = [done.expected(job.size, generated=job.generated) for job in jobs]
    return sum(work) / len(work) if work else None


def _ranks(count: int, sampled: int) -> list[int]:
    """Choose a rank at random in each of as many equal parts."""
    if count <= sampled:
        return list(range(count))
    part = count / sampled
    return [int(part * (number + random.random())) for number in range(sampled)]  # noqa: S311 - no secret
