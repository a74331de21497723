"""``inferfleet get``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from inferfleet.cli.going_on import goes_on
from inferfleet.cli.options import JobArgument, JsonFlag, producer_settings
from inferfleet.cli.printing import print_answer, print_json
from inferfleet.cli.terminal import err
from inferfleet.producer.fleet import Fleet


def command(
    job: JobArgument,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has finished.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a job's state, and its answer once it has ended."""
    asyncio.run(_get(job, wait=wait, as_json=as_json))


async def _get(job: str, *, wait: bool, as_json: bool) -> None:
    async with Fleet.connect(producer_settings()) as fleet:
        if wait:
            with goes_on(job, "get --wait"):
                await fleet.wait(job)
        record = await fleet.get(job)
    if as_json:
        print_json(record)
    else:
        where = f" on {record.worker_id}" if record.worker_id else ""
        model = f" of model {record.model_identity}" if record.model_identity else ""
        err(f"{record.state}, attempt {record.attempt}{where}, {record.tokens} tokens{model}\n")
    if record.result is not None:
        if as_json:
            record.result.raise_for_state()
        else:
            print_answer(record.result)
