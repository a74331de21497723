"""``inferfleet cancel``."""

from __future__ import annotations

import asyncio

import orjson

from inferfleet.cli.options import JobArgument, JsonFlag, producer_settings
from inferfleet.cli.terminal import out
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.job import JobState


def command(job: JobArgument, *, as_json: JsonFlag = False) -> None:
    """Cancel a job. A queued one never runs; a running one stops within a batch step."""
    state = asyncio.run(_cancel(job))
    if as_json:
        out(orjson.dumps({"id": job, "state": state}).decode() + "\n")
    else:
        meaning = {
            JobState.RUNNING: "it is running, and was told to stop",
            JobState.CANCELLED: "cancelled",
        }
        out(meaning.get(state, f"it had {state} before") + "\n")


async def _cancel(job: str) -> JobState:
    async with Fleet.connect(producer_settings()) as fleet:
        return await fleet.cancel(job)
