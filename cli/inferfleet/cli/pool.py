"""``inferfleet pool``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import orjson
import typer

from inferfleet.cli.fleet_lines import print_pools, print_workers
from inferfleet.cli.options import JsonFlag, live_pools, none_empty, not_empty, producer_settings
from inferfleet.cli.printing import print_json, print_told
from inferfleet.cli.terminal import out
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.pool import PoolStatus

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PoolArgument = Annotated[
    str,
    typer.Argument(metavar="POOL", help="The pool's name.", callback=not_empty, autocompletion=live_pools),
]


@app.callback()
def pools() -> None:
    """Pools and their queues."""


@app.command()
def declare(
    pools: Annotated[list[str], typer.Argument(metavar="POOL", help="Names of pools.", callback=none_empty)],
) -> None:
    """Declare the queues of pools, so that jobs are accepted before the first worker starts."""
    asyncio.run(_declare(pools))


@app.command("list")
def list_(*, as_json: JsonFlag = False) -> None:
    """List the pools, with their queues, unfinished jobs and workers."""
    found = _run(lambda fleet: fleet.pools())
    if as_json:
        out(orjson.dumps([pool.model_dump(mode="json") for pool in found]).decode() + "\n")
    else:
        print_pools(found)


@app.command()
def show(pool: PoolArgument, *, as_json: JsonFlag = False) -> None:
    """Show a pool: its unfinished jobs by priority, its queue, and each of its workers."""
    found = _run(lambda fleet: fleet.pool(pool))
    if as_json:
        print_json(found)
        return
    print_pools([found])
    out(f"unfinished by priority: {_by_priority(found)}\n")
    if found.paused_at is not None:
        since = f"{found.paused_at:%Y-%m-%d %H:%M:%S} UTC"
        out(f"paused since {since}; resume it with `inferfleet pool resume {pool}`\n")
    if found.required_identity is not None:
        out(f"requires model {found.required_identity} of its workers\n")
    if found.workers:
        print_workers(found.workers)


@app.command()
def pause(pool: PoolArgument, *, as_json: JsonFlag = False) -> None:
    """Pause a pool: its workers finish what runs, and start nothing more until it is resumed."""
    _run(lambda fleet: fleet.pause_pool(pool))
    print_told("paused", {"pool": pool, "state": "paused"}, as_json=as_json)


@app.command()
def resume(pool: PoolArgument, *, as_json: JsonFlag = False) -> None:
    """Resume a paused pool: its workers start jobs again."""
    state = "resumed" if _run(lambda fleet: fleet.resume_pool(pool)) else "was not paused"
    print_told(state, {"pool": pool, "state": state}, as_json=as_json)


@app.command("require-identity")
def require_identity(
    pool: PoolArgument,
    identity: Annotated[
        str | None,
        typer.Argument(
            metavar="IDENTITY", help="16 hexadecimal digits, as `worker list` shows.", callback=not_empty
        ),
    ] = None,
    *,
    none: Annotated[bool, typer.Option("--none", help="Accept workers with any model again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let a pool be served only by workers whose model has this identity; the others start no more jobs."""
    if none is (identity is not None):
        raise typer.BadParameter("give either an identity or --none")
    if identity is not None and re.fullmatch("[0-9a-f]{16}", identity) is None:
        raise typer.BadParameter(f"{identity!r} is not an identity, which has 16 hexadecimal digits")
    _run(lambda fleet: fleet.require_identity(pool, identity))
    told = f"requires {identity}" if identity is not None else "requires no identity"
    print_told(told, {"pool": pool, "required_identity": identity}, as_json=as_json)


async def _declare(pools: list[str]) -> None:
    # Without Redis, which a declaration does not need.
    publisher = Publisher(producer_settings())
    try:
        for pool in pools:
            await publisher.declare_pool(pool)
            out(f"{job_queue(pool)}\n")
    finally:
        await publisher.aclose()


def _by_priority(pool: PoolStatus) -> str:
    return ", ".join(f"{priority}: {count:,}" for priority, count in pool.unfinished.items()) or "none"


def _run(work: Callable[[Fleet], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with Fleet.connect(producer_settings()) as fleet:
            return await work(fleet)

    return asyncio.run(connected())
