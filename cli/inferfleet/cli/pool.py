"""``inferfleet pool``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from inferfleet.cli.options import none_empty, producer_settings
from inferfleet.cli.terminal import out
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas.names import job_queue

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pools and their queues.")


@app.callback()
def pools() -> None:
    """Pools and their queues."""


@app.command()
def declare(
    pools: Annotated[list[str], typer.Argument(metavar="POOL", help="Names of pools.", callback=none_empty)],
) -> None:
    """Declare the queues of pools, so that jobs are accepted before the first worker starts."""
    asyncio.run(_declare(pools))


async def _declare(pools: list[str]) -> None:
    publisher = Publisher(producer_settings())
    try:
        for pool in pools:
            await publisher.declare_pool(pool)
            out(f"{job_queue(pool)}\n")
    finally:
        await publisher.aclose()
