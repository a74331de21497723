"""Says in one sentence where code that is not ours has raised, and what."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from pydantic import ValidationError

from inferfleet.schemas.errors import InferfleetError
from inferfleet.schemas.problems import describe

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))

_OURS = str(Path(__file__).parents[3])


def raised_by(error: BaseException) -> str:
    """Return the file, the line and the error, where possible of the code that has called a library."""
    place = ""
    if isinstance(error, SyntaxError) and error.filename is not None:
        place = f"{error.filename}, line {error.lineno}: "
    else:
        frames = [it for it in traceback.extract_tb(error.__traceback__) if not it.filename.startswith("<")]
        own = [it for it in frames if not it.filename.startswith((*_LIBRARIES, _OURS))]
        if frames := own or frames:
            place = f"{frames[-1].filename}, line {frames[-1].lineno}: "
    match error:
        case ValidationError():
            said = describe(error, whole=error.title)
        case InferfleetError():
            said = str(error)
        case SyntaxError():
            said = f"SyntaxError: {error.msg}"
        case _:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return place + " ".join(said.split())
