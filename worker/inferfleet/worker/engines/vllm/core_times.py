"""How long the parts of a start of vLLM's own processes take.

vLLM measures them and only logs them, in processes of its own. There the plugin listens for these lines, also
for those that the log leaves out, and writes the seconds to a file, which the worker reads when the model is
loaded. If a later vLLM words a line otherwise, its time counts as another part.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from tempfile import NamedTemporaryFile
from typing import Final, NamedTuple, TextIO

from inferfleet.worker.start_times import StartPart

FILE_VARIABLE: Final = "INFERFLEET_VLLM_START_TIMES"
"""The worker sets this variable to the file while it loads a model."""

_INIT: Final = "init"
"""What vLLM measures around compiling, capturing and allocating."""


class _Line(NamedTuple):
    """A line of vLLM's log: the logger, how its text begins, and which of its arguments are the seconds."""

    logger: str
    begin: str
    part: str
    argument: int


_LINES: Final = (
    _Line("vllm.model_executor.model_loader.default_loader", "Loading weights took", StartPart.WEIGHTS, 0),
    _Line("vllm.compilation.monitor", "%storch.compile", StartPart.COMPILE, 1),
    _Line("vllm.v1.worker.gpu_model_runner", "Graph capturing finished in", StartPart.GRAPHS, 0),
    _Line("vllm.v1.worker.gpu.model_runner", "Graph capturing finished in", StartPart.GRAPHS, 0),
    _Line("vllm.v1.engine.core", "init engine (", _INIT, 0),
)


def note_start_times() -> None:
    """Write the times of this process into the worker's file, if it has named one."""
    if FILE_VARIABLE not in os.environ:
        return
    shown = logging.getLogger("vllm").getEffectiveLevel()
    for name in {line.logger for line in _LINES}:
        log = logging.getLogger(name)
        log.setLevel(min(shown, logging.INFO))
        log.addFilter(partial(_note, shown))


def _note(shown: int, record: logging.LogRecord) -> bool:
    """Note the seconds in a line; return whether the log shows it."""
    for line in _LINES:
        if record.name == line.logger and str(record.msg).startswith(line.begin):
            # The file is gone once the model is loaded.
            with suppress(OSError, LookupError, TypeError), _appending(os.environ[FILE_VARIABLE]) as times:
                times.write(f"{os.getpid()} {line.part} {record.args[line.argument]}\n")  # type: ignore[index]
    return record.levelno >= shown


def _appending(file: str) -> TextIO:
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND), "w")


@contextmanager
def core_times() -> Generator[dict[StartPart, float]]:
    """Yield the parts of the start of vLLM's processes that the block starts; they are known at its end.

    If two threads load models at the same time, their parts may mix.
    """
    parts: dict[StartPart, float] = {}
    with NamedTemporaryFile(prefix="inferfleet-start-") as file:
        os.environ[FILE_VARIABLE] = file.name
        try:
            yield parts
        finally:
            os.environ.pop(FILE_VARIABLE, None)
        parts.update(_read(file.read().decode()))


def _read(lines: str) -> Mapping[StartPart, float]:
    """Return the times of the slowest process for each part: they wait for each other."""
    processes: dict[tuple[str, str], float] = {}
    for line in lines.splitlines():
        process, part, seconds = line.split()
        processes[process, part] = processes.get((process, part), 0.0) + float(seconds)
    slowest: dict[str, float] = {}
    for (_, part), total in processes.items():
        slowest[part] = max(total, slowest.get(part, 0.0))
    if (init := slowest.pop(_INIT, None)) is not None:
        inside = slowest.get(StartPart.COMPILE, 0.0) + slowest.get(StartPart.GRAPHS, 0.0)
        slowest[StartPart.KV_CACHE] = max(0.0, init - inside)
    return {StartPart(part): seconds for part, seconds in slowest.items()}
