"""Prints results and streams on stdout, so that ``--json`` means the same for every command."""

from __future__ import annotations

import sys

import orjson

from inferfleet.cli.terminal import err, out
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas import Result
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


def print_answer(result: Result) -> None:
    """Print the answer: the text of a chat or completion, or the whole response of other endpoints.

    Raises:
        JobFailedError: The job ended in another state than ``succeeded``.

    """
    response = result.raise_for_state().response or {}
    text = result.text
    out((text or orjson.dumps(response).decode()) + "\n")


async def print_stream(fleet: Fleet, job_id: str, *, as_json: bool) -> None:
    """Print a job's journal as it grows: its text, or every entry as a line of JSON.

    Raises:
        JobFailedError: The job ended in another state than ``succeeded``.

    """
    streamed = False
    async for line in fleet.stream(job_id):
        if as_json:
            print_json(line.entry)
            continue
        match line.entry:
            case TokensEntry(chunks=chunks):
                for chunk in chunks:
                    streamed = True
                    out(chunk.text if chunk.index == 0 else "")
                sys.stdout.flush()
            case RestartedEntry(reason=reason):
                out("\n")
                err(f"inferfleet: the answer restarts ({reason})\n")
            case FinishedEntry() | QueuedEntry() | RunningEntry():
                pass
    result = await fleet.wait(job_id)
    if not as_json:
        if streamed:
            out("\n")
        else:
            print_answer(result)
    result.raise_for_state()
