"""Who sends a request: a tenant, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastapi import Request
from starlette.types import Scope

from inferfleet.gateway.api_keys import ApiKey
from inferfleet.schemas.job import DEFAULT_TENANT

_STATE: Final = "inferfleet.caller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller of the gateway: by its ``key``, or anybody where there are no keys.

    ``pools`` are those that it may use, ``None`` if it may use all; ``max_priority`` is the highest priority
    that its jobs may have.
    """

    key: ApiKey | None = None

    @property
    def tenant(self) -> str:
        """The tenant to whom all belongs that the caller makes."""
        return DEFAULT_TENANT if self.key is None else self.key.tenant

    @property
    def pools(self) -> tuple[str, ...] | None:
        """The pools that the caller may use; ``None`` are all."""
        return None if self.key is None else self.key.pools


ANYBODY: Final = Caller()
"""Every caller of a gateway without keys."""


def caller_of(request: Request) -> Caller:
    """Return who sends a request."""
    return caller_in(request.scope) or ANYBODY


def caller_in(scope: Scope) -> Caller | None:
    """Return who sends a request, if that has been found out."""
    caller: Caller | None = scope.get(_STATE)
    return caller


def set_caller(scope: Scope, caller: Caller) -> None:
    """Note who sends a request."""
    scope[_STATE] = caller
