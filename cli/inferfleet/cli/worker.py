"""``inferfleet worker``: the worker's own commands, and the list of workers."""

from __future__ import annotations

import asyncio

import orjson

from inferfleet.cli.fleet_lines import print_workers
from inferfleet.cli.options import JsonFlag, producer_settings
from inferfleet.cli.terminal import out
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.worker.cli import app

__all__ = ["app"]


@app.command("list")
def list_(*, as_json: JsonFlag = False) -> None:
    """List the workers that are alive, with their pool, phase, load and model."""
    workers = asyncio.run(_workers())
    if as_json:
        out(orjson.dumps([worker.model_dump(mode="json") for worker in workers]).decode() + "\n")
    else:
        print_workers(workers)


async def _workers() -> list[Heartbeat]:
    async with Fleet.connect(producer_settings()) as fleet:
        return await fleet.workers()
