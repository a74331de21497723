"""``inferfleet stream``."""

from __future__ import annotations

import asyncio

from inferfleet.cli.going_on import goes_on
from inferfleet.cli.options import JobArgument, JsonFlag, producer_settings
from inferfleet.cli.printing import print_stream
from inferfleet.producer.fleet import Fleet


def command(job: JobArgument, *, as_json: JsonFlag = False) -> None:
    """Print a job's text from its beginning, as it grows; with --json, print every journal entry."""

    async def follow() -> None:
        async with Fleet.connect(producer_settings()) as fleet:
            with goes_on(job, "stream"):
                await print_stream(fleet, job, as_json=as_json)

    asyncio.run(follow())
