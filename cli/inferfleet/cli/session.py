"""``inferfleet session``: shows and changes the sessions in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import typer

from inferfleet.cli.options import JsonFlag, not_empty, producer_settings
from inferfleet.cli.printing import tell_of_more
from inferfleet.cli.reading import STANDARD, read_text
from inferfleet.cli.terminal import err, line, out, shown_id
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.errors import SessionError
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.said import shown_text
from inferfleet.schemas.session import SessionExport, SessionRecord, read_export

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

SessionArgument = Annotated[
    str, typer.Argument(metavar="SESSION", help="The session's id.", callback=not_empty)
]
OutputArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File to write; `-` is stdout.")]
InputArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File to read; `-` is stdin.")]


@app.callback()
def session() -> None:
    """Sessions: agents' conversations, with their turns and their state."""


@app.command()
def show(session_id: SessionArgument, *, as_json: JsonFlag = False) -> None:
    """Show a session: its running turn, its state and its messages."""

    async def read(fleet: Fleet) -> tuple[SessionRecord | None, SessionExport]:
        handle = fleet.session(session_id)
        return await handle.get(), await handle.export()

    record, export = _run(read)
    messages = [message for turn in export.turns for message in turn.messages]
    if as_json:
        known = record.model_dump(mode="json") if record else {}
        _print_json({**known, "state": export.state, "messages": messages})
        return
    if record is not None:
        err(
            f"{_turns(record)}, {record.bytes:,} bytes, running {record.owner or 'nothing'}, "
            f"{len(record.waiting)} waiting, state {record.state_version}: "
            f"{orjson.dumps(export.state).decode()}\n"
        )
    for message in messages:
        out(f"{line(str(message.get('role')))}: {_words(message)}\n")


@app.command("list")
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 1000,
    as_json: JsonFlag = False,
) -> None:
    """List sessions."""

    async def read(fleet: Fleet) -> tuple[list[SessionRecord], bool]:
        ids = await fleet.sessions(limit=limit + 1)
        found = await asyncio.gather(*(fleet.session(session_id).get() for session_id in ids[:limit]))
        return [record for record in found if record is not None], len(ids) > limit

    records, more = _run(read)
    if more:
        tell_of_more(limit)
    if as_json:
        _print_json([record.model_dump(mode="json") for record in records])
        return
    # One line each and nothing cut off, so that ids can be copied into the next command.
    for record in records:
        unfinished = len(record.waiting) + 1 if record.owner else 0
        changed_at = f"{record.updated_at:%Y-%m-%d %H:%M:%S}" if record.updated_at else "-"
        fields = (
            *(shown_id(record.id), changed_at, _turns(record)),
            *(f"{record.bytes:,} bytes", f"{unfinished} unfinished"),
        )
        out("  ".join(fields) + "\n")


@app.command()
def fork(
    session_id: SessionArgument,
    new_id: Annotated[str, typer.Argument(metavar="NEW", help="The id of the copy.", callback=not_empty)],
    *,
    turns: Annotated[int | None, typer.Option(help="How many turns to copy; all by default.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy a session, or its first turns, with its current state."""

    async def copy(fleet: Fleet) -> None:
        await fleet.session(session_id).fork(new_id, turns=turns)

    _run(copy)
    _print_id(new_id, as_json=as_json)


@app.command()
def delete(session_id: SessionArgument, *, as_json: JsonFlag = False) -> None:
    """Delete a session. Its running and waiting turns go on, and nothing of them is kept in it."""

    async def forget(fleet: Fleet) -> bool:
        return await fleet.session(session_id).delete()

    if not _run(forget):
        raise SessionError(f"there is no session {session_id!r}")
    _print_id(session_id, as_json=as_json)


@app.command()
def export(
    session_id: SessionArgument, file: OutputArgument = STANDARD, *, as_json: JsonFlag = False
) -> None:
    """Write a whole session as one JSON document."""

    async def read(fleet: Fleet) -> SessionExport:
        return await fleet.session(session_id).export()

    document = _run(read).model_dump_json() + "\n"
    if file == STANDARD:
        out(document)
    else:
        try:
            file.write_text(document, encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"cannot write {str(file)!r}: {error.strerror}") from error
        _print_id(session_id, as_json=as_json)


@app.command("import")
def import_(
    file: InputArgument = STANDARD,
    *,
    session_id: Annotated[
        str | None,
        typer.Option(
            "--session", help="Id of the new session; by default the one in the file.", callback=not_empty
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a session from an exported one. No session may have its id yet."""
    document = read_export(read_text(file))
    new_id = session_id or document.id

    async def make(fleet: Fleet) -> None:
        await fleet.session(new_id).import_(document)

    _run(make)
    _print_id(new_id, as_json=as_json)


def _run(work: Callable[[Fleet], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with Fleet.connect(producer_settings()) as fleet:
            return await work(fleet)

    return asyncio.run(connected())


def _turns(record: SessionRecord) -> str:
    return count_of(record.turns, "turn")


def _words(message: dict[str, Any]) -> str:
    """Return a message as text for a person."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    called = " ".join(f"{function['name']}({function['arguments']})" for function in calls)
    return " ".join(filter(None, (shown_text(message.get("content")), called)))


def _print_id(session_id: str, *, as_json: bool) -> None:
    if as_json:
        _print_json({"id": session_id})
    else:
        out(f"{session_id}\n")


def _print_json(value: object) -> None:
    out(orjson.dumps(value).decode() + "\n")
