"""The files that a page of the documentation shows: blocks with a title, like ``python title="app.py"``."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"

FILE = re.compile(r'^```\w+ title="(?P<name>[^"]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


def write_files_of(page: str, folder: Path) -> None:
    """Write the files of a page, named from ``docs``, into a folder."""
    files = list(FILE.finditer((DOCS / page).read_text(encoding="utf-8")))
    assert files, f"{page} shows no file"
    for file in files:
        path = folder / file["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file["text"], encoding="utf-8")
