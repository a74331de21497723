"""``inferfleet stream``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from inferfleet.cli.going_on import goes_on
from inferfleet.cli.options import JobArgument, JsonFlag, producer_settings
from inferfleet.cli.printing import Printed, print_stream
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.journal_view import BEGINNING, JournalView


def command(
    job: JobArgument,
    *,
    after: Annotated[
        str,
        typer.Option(
            metavar="ID", help="Begin behind the entry with this id, which --json prints.", show_default=False
        ),
    ] = BEGINNING,
    as_json: JsonFlag = False,
) -> None:
    """Print a job's text as it grows; with --json, every journal entry with its id.

    If it is interrupted, it names the command that prints the rest.
    """
    try:
        JournalView.at(after)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    asyncio.run(_follow(job, Printed(after), as_json=as_json))


async def _follow(job: str, printed: Printed, *, as_json: bool) -> None:
    async with Fleet.connect(producer_settings()) as fleet:
        with goes_on(job, lambda: printed.rest):
            await print_stream(fleet, job, as_json=as_json, printed=printed)
