"""``inferfleet dead``: lists, shows, replays and purges dead letters."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypedDict, TypeVar

import orjson
import typer

from inferfleet.cli.options import JsonFlag, none_empty, not_empty, producer_settings
from inferfleet.cli.printing import print_refused, tell_of_more
from inferfleet.cli.terminal import err, line, out, shown_id
from inferfleet.producer.dead_letters import DeadLetters
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.errors import PartialReplayError
from inferfleet.schemas.job import DEFAULT_POOL, Job
from inferfleet.schemas.plural import count_of

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PoolOption = Annotated[
    str, typer.Option("--pool", help="Pool whose dead letters to use.", callback=not_empty)
]
IdArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Id, as printed by `dead list`.", callback=not_empty)
]
IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="JOB", help="Ids, as printed by `dead list`.", callback=none_empty),
]
AllFlag = Annotated[bool, typer.Option("--all", help="Use all dead letters that the pool has now.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="With --all, do not ask for confirmation.")]


@app.callback()
def dead() -> None:
    """Dead letters: jobs that failed too often, and messages that are not jobs."""


@app.command("list")
def list_(
    *,
    pool: PoolOption = DEFAULT_POOL,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List a pool's dead letters, the oldest first. Prompts are not shown."""
    found = _run(lambda dead_letters: dead_letters.read(pool, limit=limit + 1))
    letters = found[:limit]
    if len(found) > limit:
        tell_of_more(limit)
    if as_json:
        _print_json([letter.model_dump(mode="json", exclude={"job"}) for letter in letters])
        return
    # One line each and nothing cut off, so that ids can be copied into the next command.
    for letter in letters:
        died_at = f"{letter.died_at:%Y-%m-%d %H:%M:%S}" if letter.died_at else "-"
        attempts = count_of(letter.attempts, "attempt")
        why = " ".join(letter.message.split())
        out(f"{shown_id(letter.message_id or '-')}  {died_at}  {letter.code}  {attempts}  {why}\n")


@app.command()
def show(job: IdArgument, *, pool: PoolOption = DEFAULT_POOL) -> None:
    """Show one dead letter with its whole request, as JSON."""
    letters = _run(lambda dead_letters: dead_letters.read(pool, ids=[job]))
    _print_json(letters[0].model_dump(mode="json"))


@app.command()
def replay(
    jobs: IdsArgument = None,
    *,
    everything: AllFlag = False,
    yes: YesFlag = False,
    pool: PoolOption = DEFAULT_POOL,
    as_json: JsonFlag = False,
) -> None:
    """Submit dead letters again as new jobs. Prints the new ids; each new job's metadata has the old id.

    Messages that are not jobs stay in the dead-letter queue, and so do letters whose job is refused.
    """
    meant = _meant("submit again", jobs, everything=everything, yes=yes, pool=pool)
    again: Sequence[Job]
    partial: PartialReplayError | None = None
    try:
        again = _run(lambda dead_letters: dead_letters.replay(pool, **meant))
    except PartialReplayError as error:
        again, partial = error.jobs, error
    if as_json:
        _print_json([job.model_dump(mode="json", exclude={"body"}) for job in again])
    else:
        for job in again:
            out(f"{job.id}\n")
    if partial is not None:
        print_refused(partial)
        raise partial


@app.command()
def purge(
    jobs: IdsArgument = None,
    *,
    everything: AllFlag = False,
    yes: YesFlag = False,
    pool: PoolOption = DEFAULT_POOL,
    as_json: JsonFlag = False,
) -> None:
    """Delete dead letters for good."""
    meant = _meant("delete for good", jobs, everything=everything, yes=yes, pool=pool)
    count = _run(lambda dead_letters: dead_letters.purge(pool, **meant))
    if as_json:
        _print_json({"pool": pool, "purged": count})
    else:
        out(f"{count} purged\n")


class _Meant(TypedDict, total=False):
    """Arguments of ``purge`` and ``replay`` that select dead letters."""

    ids: list[str] | None
    everything: bool
    oldest: int


def _meant(what: str, jobs: list[str] | None, *, everything: bool, yes: bool, pool: str) -> _Meant:
    """Select dead letters by id, or all of them after a confirmation.

    The user confirms a number. Letters that arrive during the question are behind those that were counted.
    """
    if everything is bool(jobs):
        raise typer.BadParameter("give the ids of dead letters, or --all, and not both")
    if not everything:
        return {"ids": jobs}
    if yes:
        return {"everything": True}
    if not sys.stdin.isatty():
        raise typer.BadParameter("--all asks for confirmation, and stdin is not a terminal: add --yes")
    count = _run(lambda dead_letters: dead_letters.count(pool))
    # Not typer.confirm, which also writes to stdout.
    err(f"{what}: {count_of(count, 'dead letter')} of pool {line(pool)}? [y/N] ")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise typer.Exit(1)
    return {"oldest": count}


def _run(work: Callable[[DeadLetters], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with Fleet.connect(producer_settings()) as fleet:
            return await work(fleet.dead_letters)

    return asyncio.run(connected())


def _print_json(value: object) -> None:
    out(orjson.dumps(value).decode() + "\n")
