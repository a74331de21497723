"""Reads the documents of an index from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from inferfleet.cli.reading import read_text
from inferfleet.schemas.errors import RetrievalError

LINES: Final = ".jsonl"


def documents_in(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the documents of files: of ``*.jsonl`` each line, of all others the whole text.

    Raises:
        typer.BadParameter: A file cannot be read, or is in no encoding that is known.
        RetrievalError: A line is not a JSON object.

    """
    for file in files:
        text = read_text(file)
        if file.suffix == LINES:
            yield from _lines(file, text)
        elif text.strip():
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
