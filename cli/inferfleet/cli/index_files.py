"""Reads the documents of an index from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from inferfleet.cli.reading import read_text
from inferfleet.cli.terminal import err, shown_id
from inferfleet.schemas.errors import RetrievalError

LINES: Final = ".jsonl"


def documents_in(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the documents of files: of ``*.jsonl`` each line, of all others the whole text.

    Says on stderr which files have no text.

    Raises:
        typer.BadParameter: A file cannot be read, or is in no encoding that is known.
        RetrievalError: A line is not a JSON object.

    """
    for file in files:
        text = read_text(file)
        if not text.strip():
            removed = "" if file.suffix == LINES else "; a document that it had before is still in the index"
            err(f"inferfleet: {shown_id(str(file))} has no text, and is left out{removed}\n")
        elif file.suffix == LINES:
            yield from _lines(file, text)
        else:
            yield {"id": str(file), "text": text}


def _lines(file: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise RetrievalError(f"{file}, line {number}: is not JSON ({error})") from error
        if not isinstance(document, dict):
            raise RetrievalError(f"{file}, line {number}: is not an object with id and text")
        yield document
