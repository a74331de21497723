"""``inferfleet jobs``: lists, shows and cancels jobs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated

import orjson
import typer

from inferfleet.cli.job_lines import story, summary
from inferfleet.cli.options import JobArgument, JsonFlag, producer_settings
from inferfleet.cli.printing import print_refused, print_told, tell_of_more
from inferfleet.cli.terminal import err, out
from inferfleet.cli.where import LettersWhereOption, WhereOption, parse_letters_where, parse_where
from inferfleet.producer.dead_letters import LetterFilter
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_listing import EVERY_JOB, JobFilter
from inferfleet.schemas import Job
from inferfleet.schemas.errors import PartialReplayError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def jobs() -> None:
    """Jobs that have not ended. Those that have are in no list; `get` and `jobs show` find them by id."""


@app.command("list")
def list_(
    *,
    where: WhereOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List unfinished jobs by pool, the most urgent first, and within a priority the oldest first."""
    asyncio.run(_list(parse_where(where), limit, as_json=as_json))


@app.command()
def show(job: JobArgument, *, as_json: JsonFlag = False) -> None:
    """Show what has happened to a job, and why it waits."""
    asyncio.run(_show(job, as_json=as_json))


@app.command()
def cancel(
    *,
    where: WhereOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Cancel them. Without it, only count them.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Cancel the unfinished jobs that meet the conditions. Without --yes, only count them."""
    conditions = parse_where(where)
    if conditions == EVERY_JOB:
        raise typer.BadParameter("give at least one condition with --where")
    states = Counter[str]()
    try:
        asyncio.run(_cancel(conditions, states) if yes else _count(conditions, states))
    finally:
        # Also if it stops halfway.
        told = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items())) or "none"
        print_told(told, {"dry_run": not yes, "jobs": states}, as_json=as_json)
    if not as_json and states and not yes:
        err("inferfleet: nothing was cancelled; add --yes to cancel these jobs\n")


@app.command()
def retry(
    *,
    where: LettersWhereOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Submit them again. Without it, only count them.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit failed jobs again as new jobs, and print their ids. Without --yes, only count them.

    These are a pool's dead letters: Redis keeps no request of a job that failed in another way.
    """
    pool, conditions = parse_letters_where(where)
    if yes:
        again: Sequence[Job]
        partial: PartialReplayError | None = None
        try:
            again = asyncio.run(_retry(pool, conditions))
        except PartialReplayError as error:
            again, partial = error.jobs, error
        ids = [job.id for job in again]
        if ids or as_json:
            print_told("\n".join(ids), {"dry_run": False, "jobs": ids}, as_json=as_json)
        if partial is not None:
            print_refused(partial)
            raise partial
        return
    number = asyncio.run(_count_letters(pool, conditions))
    print_told(f"{number:,} dead letters", {"dry_run": True, "jobs": number}, as_json=as_json)
    if number and not as_json:
        err("inferfleet: nothing was submitted; add --yes to submit these jobs again\n")


async def _list(where: JobFilter, limit: int, *, as_json: bool) -> None:
    listed = 0
    async with (
        Fleet.connect(producer_settings()) as fleet,
        aclosing(fleet.list_jobs(where)) as records,
    ):
        async for record in records:
            if listed == limit:
                tell_of_more(limit)
                break
            if as_json:
                # An array, but never all of it in memory.
                out((",\n" if listed else "[") + record.model_dump_json(exclude_none=True))
            else:
                out(f"{summary(record)}\n")
            listed += 1
    if as_json:
        out("]\n" if listed else "[]\n")


async def _show(job: str, *, as_json: bool) -> None:
    async with Fleet.connect(producer_settings()) as fleet:
        events = await fleet.timeline(job)
        records = await fleet.get_many([job])
        position = await fleet.position(job)
    record = records[job]
    if as_json:
        known = record and record.model_dump(mode="json", exclude={"result"}, exclude_none=True)
        first = next(iter(position.waits), None)
        shown = {"job": known, "timeline": events, "waits_for": first, "position": position}
        out(orjson.dumps(shown).decode() + "\n")
        return
    if record is not None:
        out(f"{summary(record)}\n")
    for text in story(events, position):
        out(f"{text}\n")


async def _retry(pool: str, where: LetterFilter) -> list[Job]:
    async with Fleet.connect(producer_settings()) as fleet:
        return await fleet.dead_letters.replay(pool, where=where)


async def _count_letters(pool: str, where: LetterFilter) -> int:
    async with Fleet.connect(producer_settings()) as fleet:
        return await fleet.dead_letters.count(pool, where=where)


async def _count(where: JobFilter, states: Counter[str]) -> None:
    async with Fleet.connect(producer_settings()) as fleet, aclosing(fleet.list_jobs(where)) as records:
        async for record in records:
            states[record.state.value] += 1


async def _cancel(where: JobFilter, states: Counter[str]) -> None:
    async with Fleet.connect(producer_settings()) as fleet, aclosing(fleet.cancel_jobs(where)) as cancelled:
        async for _, state in cancelled:
            states[state.value] += 1
