"""Who sends a request: a tenant, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastapi import Request
from starlette.types import Scope

from inferfleet.schemas.job import DEFAULT_TENANT

_STATE: Final = "inferfleet.caller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller of the gateway.

    ``pools`` are those that it may use, ``None`` if it may use all; ``max_priority`` is the highest priority
    that its jobs may have.
    """

    tenant: str = DEFAULT_TENANT
    pools: frozenset[str] | None = None
    max_priority: int = 9


ANYBODY: Final = Caller()
"""Every caller of a gateway without keys."""


def caller_of(request: Request) -> Caller:
    """Return who sends a request."""
    caller: Caller = request.scope.get(_STATE, ANYBODY)
    return caller


def set_caller(scope: Scope, caller: Caller) -> None:
    """Note who sends a request."""
    scope[_STATE] = caller
