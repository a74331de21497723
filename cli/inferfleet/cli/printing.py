"""Prints results and streams on stdout, so that ``--json`` means the same for every command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import orjson

from inferfleet.cli.terminal import err, out, shown_id
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.journal_view import BEGINNING, JournalLine
from inferfleet.schemas import Result
from inferfleet.schemas.errors import PartialReplayError
from inferfleet.schemas.journal import (
    FinishedEntry,
    QueuedEntry,
    RestartedEntry,
    RunningEntry,
    TokensEntry,
)
from inferfleet.schemas.wire_model import WireModel


def print_json(model: WireModel) -> None:
    """Print a model as one line of JSON."""
    out(model.model_dump_json(exclude_none=True) + "\n")
    sys.stdout.flush()


def tell_of_more(limit: int) -> None:
    """Say on stderr that a list ends at its limit, although there are more."""
    err(f"inferfleet: there are more than {limit:,}; --limit lists more\n")


def print_told(text: str, data: dict[str, Any], *, as_json: bool) -> None:
    """Print what a command did: in words, or as one line of JSON."""
    out((orjson.dumps(data).decode() if as_json else text) + "\n")


def print_refused(error: PartialReplayError) -> None:
    """Tell which dead letters were refused, and why."""
    for letter, refusal in error.refused.items():
        err(f"inferfleet: dead letter {shown_id(letter)} stays: {' '.join(str(refusal).split())}\n")


def print_answer(result: Result) -> None:
    """Print the answer: the text of a chat or completion, or the whole response of other endpoints.

    Raises:
        JobFailedError: The job ended in another state than ``succeeded``.

    """
    response = result.raise_for_state().response or {}
    text = result.text
    out((text or orjson.dumps(response).decode()) + "\n")


@dataclass
class Printed:
    """How much of a stream was printed: everything up to the line ``after``."""

    after: str = BEGINNING

    @property
    def any_tokens(self) -> bool:
        """Whether tokens of the answer are among it."""
        return self.after.split(":")[1] != "0"

    @property
    def rest(self) -> str:
        """The command that prints the rest, without the job."""
        return "stream" if self.after == BEGINNING else f"stream --after {self.after}"


async def print_stream(fleet: Fleet, job_id: str, *, as_json: bool, printed: Printed | None = None) -> None:
    """Print a job's journal as it grows: its text, or every entry as a line of JSON.

    Begins behind what was ``printed``, and keeps that up to date.

    Raises:
        JobFailedError: The job ended in another state than ``succeeded``.

    """
    printed = printed or Printed()
    async for line in fleet.stream(job_id, after=printed.after):
        _print_line(line, as_json=as_json)
        printed.after = line.id
    result = await fleet.wait(job_id)
    if not as_json:
        if printed.any_tokens:
            out("\n")
        else:
            print_answer(result)
    result.raise_for_state()


def _print_line(line: JournalLine, *, as_json: bool) -> None:
    if as_json:
        entry = line.entry.model_dump(mode="json", exclude_none=True)
        out(orjson.dumps({"id": line.id, **entry}).decode() + "\n")
    else:
        match line.entry:
            case TokensEntry(chunks=chunks):
                for chunk in chunks:
                    out(chunk.text if chunk.index == 0 else "")
            case RestartedEntry(reason=reason):
                out("\n")
                err(f"inferfleet: the answer restarts ({reason})\n")
            case FinishedEntry() | QueuedEntry() | RunningEntry():
                pass
    sys.stdout.flush()
