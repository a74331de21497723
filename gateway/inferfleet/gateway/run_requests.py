"""What callers ask of the runs of agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inferfleet.schemas.job import PoolName
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.prices import Prices
from inferfleet.schemas.problems import MAX_QUOTED_CHARS, disagreement
from inferfleet.schemas.run import DEFAULT_AGENT_QUEUE, RunLimits


class _Request(BaseModel):
    """A request, or a part of one. A member that it does not have is an error, which names those it has."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _has_no_other_members(cls, given: Any) -> Any:
        for name in cast("Mapping[str, Any]", given if isinstance(given, Mapping) else {}):
            if name not in cls.model_fields:
                quoted = name[:MAX_QUOTED_CHARS]
                raise disagreement(
                    quoted,
                    "is not a member of this request{meant}; there are {members}",
                    meant=did_you_mean(quoted, cls.model_fields),
                    members=", ".join(cls.model_fields),
                )
        return cast("Any", given)


# The models of the wire ignore unknown members. Here the configuration of the last base counts.
class AskedPrices(Prices, _Request):
    """The prices that a caller gives."""


class AskedLimits(RunLimits, _Request):
    """The limits that a caller sets."""

    # It is frozen, which pyright does not see.
    prices: AskedPrices | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class StartRun(_Request):
    """Start a run of an agent."""

    input: str
    queue: PoolName = DEFAULT_AGENT_QUEUE
    priority: Annotated[int, Field(ge=0, le=9), NUMBER] | str | None = None
    limits: AskedLimits | None = None

    @property
    def run_limits(self) -> RunLimits | None:
        """The limits as an order has them."""
        return self.limits and RunLimits.model_validate(self.limits.model_dump(exclude_unset=True))


class ReplayRun(_Request):
    """Start a run with the order of another one, and what that had done before a call of its model."""

    from_step: Annotated[int, Field(ge=1), NUMBER] = 1


class ApproveCall(_Request):
    """Let a run make a tool call; with ``result``, the model gets that instead."""

    question: str
    result: str | None = None


class DenyCall(_Request):
    """Let a run not make a tool call. The model reads the reason."""

    question: str
    reason: str = ""
