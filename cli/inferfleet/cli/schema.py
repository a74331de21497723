"""``inferfleet schema``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferfleet.cli.options import not_empty
from inferfleet.cli.terminal import out
from inferfleet.schemas.documents import drift
from inferfleet.schemas.documents import export as export_documents

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The contract as files.")


@app.callback()
def schema() -> None:
    """The contract as files."""


@app.command()
def export(
    folder_name: Annotated[
        str, typer.Argument(metavar="FOLDER", help="The folder to write to.", callback=not_empty)
    ] = "schemas",
    *,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if files differ.")] = False,
) -> None:
    """Write a JSON Schema for each wire type, and an AsyncAPI document, to a folder."""
    folder = Path(folder_name)
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder")
    if check:
        different = drift(folder)
        for name in different:
            out(f"{folder / name}\n")
        raise typer.Exit(1 if different else 0)
    for path in export_documents(folder):
        out(f"{path}\n")
