"""Reads files and stdin, in the encodings that editors and shells write."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

STANDARD = Path("-")


def read_text(file: Path) -> str:
    """Read a JSON text: UTF-8, UTF-16 or UTF-32, with or without a byte order mark. ``-`` is stdin.

    Raises:
        typer.BadParameter: It cannot be read, or is in another encoding.

    """
    try:
        content = sys.stdin.buffer.read() if file == STANDARD else file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file}: {error.strerror}") from error
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise typer.BadParameter(
            f"{file} is not {name} text: byte 0x{content[error.start]:02x} at position {error.start} "
            f"({error.reason}); save it as UTF-8"
        ) from error
