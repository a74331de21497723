"""How long a worker took to start, by part: from the start of its process until it was ready."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self, runtime_checkable


class StartPart(StrEnum):
    """A part of a start. An engine whose parts are unknown has only ``engine``."""

    IMPORTS = "imports"
    """Python, and the worker's own modules, until it reads its settings."""
    SERVICES = "services"
    """Connecting to Redis and RabbitMQ, and declaring the queues."""
    ENGINE_IMPORTS = "engine_imports"
    """The engine's modules in the worker's process, and its configuration."""
    ENGINE_PROCESSES = "engine_processes"
    """The engine's own processes: their imports, the device, the empty model."""
    WEIGHTS = "weights"
    """Reading the weights into memory."""
    COMPILE = "compile"
    """Compiling the model, or loading what was compiled before."""
    GRAPHS = "graphs"
    """Capturing CUDA graphs."""
    KV_CACHE = "kv_cache"
    """Measuring the memory, allocating the KV cache, and running the model for the first time."""
    FRONT_END = "front_end"
    """The tokenizer, the chat template, and the model's identity."""
    WARM_UP = "warm_up"
    """The first request."""
    ENGINE = "engine"
    """The rest of the engine's start."""


@runtime_checkable
class TimesItsStart(Protocol):
    """An engine that knows the parts of its start."""

    @property
    def start_parts(self) -> Mapping[StartPart, float]:
        """How many seconds each part took; known once ``start`` has returned."""
        ...


class StartTimes:
    """Takes the times of parts that follow each other, so that they add up to the whole."""

    def __init__(self) -> None:
        self.parts: dict[StartPart, float] = {}
        self._since = time.monotonic()

    @classmethod
    def of_process(cls) -> Self:
        """Begin at the start of this process, as far as the system says when that was."""
        times = cls()
        if (age_s := _process_age_s()) is not None:
            times.parts[StartPart.IMPORTS] = age_s
        return times

    def ended(self, part: StartPart, inside: Mapping[StartPart, float] | None = None) -> None:
        """Note the end of a part, which began when the last one ended.

        ``inside`` are the times of other parts that happened meanwhile; only the rest counts for this one.
        """
        now = time.monotonic()
        inside = inside or {}
        self.parts |= {part: max(0.0, now - self._since - sum(inside.values())), **inside}
        self._since = now

    def __str__(self) -> str:
        """Return the sum and the parts for the log."""
        parts = ", ".join(f"{part} {self.parts[part]:.1f}" for part in StartPart if part in self.parts)
        return f"{sum(self.parts.values()):.1f} s: {parts}"


def _process_age_s() -> float | None:
    """Return how long this process has existed; ``None`` if the system is not Linux."""
    if sys.platform != "linux":
        return None
    # proc(5): field 22 is the start, in clock ticks since the boot; field 2, in brackets, may have spaces.
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
