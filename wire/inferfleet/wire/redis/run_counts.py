"""How many runs of agents there are in each queue, and what they do.

Of many runs only some are looked at, spread evenly over the list of unfinished ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from inferfleet.schemas.fleet_snapshot import AgentQueueView
from inferfleet.schemas.names import AGENT_QUEUES_KEY, open_runs_key
from inferfleet.schemas.run import RunState, RunWait
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.runs import read_summary

BLOCKS: Final = 20
BLOCK: Final = 25
"""How many runs of a queue are looked at: so many blocks of so many runs. Those of a shorter list are all."""


async def count_runs(pipeline: CommandPipeline) -> list[AgentQueueView]:
    """Count the unfinished runs of each queue that has any, by queue."""
    queues: list[bytes] = await pipeline.execute("ZRANGE", AGENT_QUEUES_KEY, 0, -1)
    views = await asyncio.gather(*(_count(pipeline, queue.decode()) for queue in sorted(queues)))
    return [view for view in views if view.unfinished]


async def _count(pipeline: CommandPipeline, queue: str) -> AgentQueueView:
    key = open_runs_key(queue)
    unfinished: int = await pipeline.execute("ZCARD", key)
    sampled = unfinished > BLOCKS * BLOCK
    begins = [unfinished * block // BLOCKS for block in range(BLOCKS)] if sampled else [0]
    size = BLOCK if sampled else unfinished
    blocks = await asyncio.gather(
        *(pipeline.execute("ZRANGE", key, begin, begin + size - 1) for begin in begins if size)
    )
    ids = {run_id.decode() for block in blocks for run_id in block}
    found = await asyncio.gather(*(read_summary(pipeline, run_id) for run_id in ids))
    # One that has just ended is still on the list.
    runs = [run for run in found if run is not None and not run.state.terminal]
    unfinished = unfinished if sampled else len(runs)
    counts = Counter(run.waits_for or run.state for run in runs)
    now_ms = pipeline.clock.now_ms()
    scale = unfinished / len(runs) if runs else 0.0
    return AgentQueueView(
        queue=queue,
        unfinished=unfinished,
        queued=round(scale * counts[RunState.QUEUED]),
        running=round(scale * counts[RunState.RUNNING]),
        waiting_for_people=round(scale * counts[RunWait.PERSON]),
        waiting_for_children=round(scale * counts[RunWait.CHILD]),
        oldest_s=max((max(0.0, (now_ms - run.created_ms) / 1000) for run in runs), default=None),
        sampled=sampled,
    )
