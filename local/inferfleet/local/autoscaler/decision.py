"""What was measured, and what was decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """What one trigger measured; ``None`` if it could not."""

    value: float | None
    error: str = ""


Readings = Sequence[Reading]
"""One for each trigger, in their order."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there are to be, and why, for a person."""

    replicas: int
    reason: str
