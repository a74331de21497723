"""Counts things in words."""

from __future__ import annotations


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an ``s`` unless there is one: ``1 job``, ``2,000 jobs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
