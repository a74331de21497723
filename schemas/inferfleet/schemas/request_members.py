"""The known members of request bodies, to warn of misspelt ones.

Unknown members pass through to the engine, which may know them. But if a name is nearly a known one, it is
probably misspelt, and the client logs a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.near_match import near_match

logger = logging.getLogger(__name__)

_WITHOUT_A_MODEL: Final = """
audio best_of function_call functions guided_choice guided_grammar guided_json guided_regex metadata
modalities prediction prompt_cache_key prompt_cache_retention safety_identifier service_tier simulated
store verbosity web_search_options
"""
"""Members of OpenAI and vLLM that are not checked, and the simulated engine's own."""

KNOWN_MEMBERS: Final = frozenset(_WITHOUT_A_MODEL.split()).union(
    *(spec.fields for spec in ENDPOINTS.values())
)
"""The members of all endpoints together."""

CUTOFF: Final = 0.8
LOOKED_AT: Final = 16
"""How many unknown members are compared: callers choose their number, and comparing takes time."""

LONGEST: Final = 64
"""The length of the longest name that is compared, in characters."""


def warn_of_misspelt_members(body: Iterable[str]) -> None:
    """Log a warning for each member whose name is nearly a known one, once per set of unknown names."""
    if not KNOWN_MEMBERS.issuperset(body):
        unknown = [name for name in body if name not in KNOWN_MEMBERS]
        _warn(frozenset(unknown[:LOOKED_AT]))


@lru_cache(maxsize=256)
def _warn(unknown: frozenset[str]) -> None:
    for name in sorted(unknown):
        near = near_match(name, KNOWN_MEMBERS, cutoff=CUTOFF) if len(name) <= LONGEST else None
        if near is not None:
            logger.warning(
                "body.%s is not a known request field (did you mean %r?); passing it on unchanged",
                name,
                near,
            )
