"""Readings of triggers, and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """What one trigger measured; ``None`` if it failed.

    With ``fallback`` the trigger fails, and the value is what KEDA reports instead.
    """

    value: float | None
    error: str = ""
    fallback: bool = False


Readings = Sequence[Reading]
"""One reading for each trigger, in their order."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The number of replicas, and the reason for a person."""

    replicas: int
    reason: str
