"""How tenants share a pool: what each has been served lately, and which of their jobs are preferred.

Service is counted in tokens: those of prompts, and twice those of answers. It decays, so an idle tenant
neither saves up nor owes anything for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from inferfleet.schemas.job import Priority
from inferfleet.schemas.result import Usage

HALF_LIFE_S: Final = 30.0
"""After how long service counts half."""

PREFERRED_PER_SLOT: Final = 2
"""How many preferred jobs a tenant of weight 1 may have at once for each slot of the pool's workers."""

LEAST_WEIGHT: Final = 0.01
MOST_WEIGHT: Final = 100.0

COMPETES: Final = 0.1
"""A tenant that has been served less than this part of the best served one wants no more than it gets."""

_NAMED: Final = frozenset(Priority)


class Share(NamedTuple):
    """What a tenant has been served lately, in tokens, and with its preferred jobs per weight."""

    tenant: str
    tokens: float
    per_weight: float


def service_of(usage: Usage) -> int:
    """Return the service of a job that has ended."""
    return usage.prompt_tokens + 2 * usage.completion_tokens


def preferred(priority: int, *, below: int) -> int | None:
    """Return the priority of a preferred job: the next one, if that has no name and is lower than ``below``.

    ``None`` if it would not be. Only jobs of a named priority are preferred.
    """
    higher = priority + 1
    return higher if priority in _NAMED and higher not in _NAMED and higher < below else None


def may_be_preferred(priority: int) -> bool:
    """Return whether a job may have this priority because it is preferred."""
    return priority not in _NAMED and priority - 1 in _NAMED


def competing(shares: Sequence[Share]) -> list[Share]:
    """Return the shares of the tenants that want more than they get."""
    most = max((share.per_weight for share in shares), default=0.0)
    return [share for share in shares if share.per_weight and share.per_weight >= COMPETES * most]


def times_its_share(tenant: str, shares: Sequence[Share]) -> float | None:
    """Return how many times its share a tenant has been served; ``None`` if no other tenant competes."""
    others = [share for share in competing(shares) if share.tenant != tenant]
    if not others:
        return None
    mine = next((share.per_weight for share in shares if share.tenant == tenant), 0.0)
    return mine / ((mine + sum(share.per_weight for share in others)) / (1 + len(others)))


def fairness(shares: Sequence[Share]) -> float | None:
    """Return Jain's index of the competing tenants: 1 if all have the same per weight, 1/n if one has all."""
    served = [share.per_weight for share in competing(shares)]
    if not served:
        return None
    return sum(served) ** 2 / (len(served) * sum(each * each for each in served))
