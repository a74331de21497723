"""``inferfleet schema``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from inferfleet.schemas.documents import drift
from inferfleet.schemas.documents import export as export_documents

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The contract as documents.")


@app.callback()
def schema() -> None:
    """The contract as documents."""


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(file_okay=False)] = Path("schemas"),
    *,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if files differ.")] = False,
) -> None:
    """Write JSON Schema for each wire type, and an AsyncAPI document, into a folder."""
    if check:
        different = drift(folder)
        for name in different:
            sys.stdout.write(f"{folder / name}\n")
        raise typer.Exit(1 if different else 0)
    for path in export_documents(folder):
        sys.stdout.write(f"{path}\n")
