"""Finds the name that a misspelt one probably means."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near_match(name: str, known: Iterable[str], *, cutoff: float = 0.75) -> str | None:
    """Return the known name that is nearest to a misspelt one; ``None`` if none is near.

    ``maxTokens`` and ``max-tokens`` are also near to ``max_tokens``.
    """
    spellings = {_plain(each): each for each in known}
    near = get_close_matches(_plain(name), spellings, n=1, cutoff=cutoff)
    return spellings[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question to print behind a misspelt name; empty if no known name is near."""
    near = near_match(name, known)
    return "" if near is None else f" (did you mean {near!r}?)"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
