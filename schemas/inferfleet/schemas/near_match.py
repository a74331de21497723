"""What somebody probably meant who misspelt a name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near_match(name: str, known: Iterable[str], *, cutoff: float = 0.75) -> str | None:
    """The known name that is nearest to a misspelt one; ``None`` if none is near.

    ``maxTokens`` and ``max-tokens`` are near to ``max_tokens``, too.
    """
    spellings = {_plain(each): each for each in known}
    near = get_close_matches(_plain(name), spellings, n=1, cutoff=cutoff)
    return spellings[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question to put behind a misspelt name; empty if no known name is near."""
    near = near_match(name, known)
    return "" if near is None else f" (did you mean {near!r}?)"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
