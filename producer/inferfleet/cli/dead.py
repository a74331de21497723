"""``inferfleet dead``: the messages that were given up."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import orjson
import typer

from inferfleet.cli.options import JsonFlag, producer_settings
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.dead_letter import DeadLetter
from inferfleet.schemas.errors import JobNotFoundError
from inferfleet.schemas.job import DEFAULT_POOL, Job

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PoolOption = Annotated[str, typer.Option("--pool", help="The pool whose dead letters are meant.")]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Job ids; none means all.")]


@app.callback()
def dead() -> None:
    """Messages that were given up: jobs that failed too often, and messages that are no job."""


@app.command("list")
def list_(*, pool: PoolOption = DEFAULT_POOL, limit: int = 100, as_json: JsonFlag = False) -> None:
    """List a pool's dead letters, the oldest first. Prompts are not shown."""
    letters = asyncio.run(_list(pool, [], limit))
    if as_json:
        _print_json([letter.model_dump(mode="json", exclude={"job"}) for letter in letters])
        return
    # A line each and nothing cut off: ids are there to be copied into the next command.
    for letter in letters:
        died_at = f"{letter.died_at:%Y-%m-%d %H:%M:%S}" if letter.died_at else "-"
        attempts = f"{letter.attempts} attempt{'' if letter.attempts == 1 else 's'}"
        why = " ".join(letter.message.split())
        sys.stdout.write(f"{letter.message_id or '-'}  {died_at}  {letter.code}  {attempts}  {why}\n")


@app.command()
def show(job: str, *, pool: PoolOption = DEFAULT_POOL) -> None:
    """Show one dead letter whole, with its request, as JSON."""
    letters = asyncio.run(_list(pool, [job], 1_000_000))
    if not letters:
        raise JobNotFoundError(job)
    _print_json(letters[0].model_dump(mode="json"))


@app.command()
def replay(jobs: IdsArgument = None, *, pool: PoolOption = DEFAULT_POOL, as_json: JsonFlag = False) -> None:
    """Submit dead letters again, as new jobs. Prints the new ids; the old ones are in their metadata."""
    again = asyncio.run(_replay(pool, jobs or []))
    if as_json:
        _print_json([job.model_dump(mode="json", exclude={"body"}) for job in again])
        return
    for job in again:
        sys.stdout.write(f"{job.id}\n")


@app.command()
def purge(jobs: IdsArgument = None, *, pool: PoolOption = DEFAULT_POOL, as_json: JsonFlag = False) -> None:
    """Throw dead letters away, for good."""
    count = asyncio.run(_purge(pool, jobs or []))
    if as_json:
        _print_json({"pool": pool, "purged": count})
    else:
        sys.stdout.write(f"{count} purged\n")


async def _list(pool: str, ids: list[str], limit: int) -> list[DeadLetter]:
    async with Fleet.connect(producer_settings()) as fleet:
        return await fleet.dead_letters.read(pool, ids=ids, limit=limit)


async def _replay(pool: str, ids: list[str]) -> list[Job]:
    async with Fleet.connect(producer_settings()) as fleet:
        return await fleet.dead_letters.replay(pool, ids=ids)


async def _purge(pool: str, ids: list[str]) -> int:
    async with Fleet.connect(producer_settings()) as fleet:
        return await fleet.dead_letters.purge(pool, ids=ids)


def _print_json(value: object) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
