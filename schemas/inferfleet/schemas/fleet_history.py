"""Samples of the whole fleet for the plots of the last hour."""

from __future__ import annotations

from pydantic import AwareDatetime, Field, ValidationError

from inferfleet.schemas.result import Count
from inferfleet.schemas.wire_model import WireModel


class FleetSample(WireModel):
    """The whole fleet at one moment: its unfinished jobs, those that run, and the tokens per second."""

    at: AwareDatetime
    unfinished: Count
    running: Count
    tokens_per_s: float = Field(ge=0)

    @classmethod
    def read(cls, line: bytes) -> FleetSample | None:
        """Read a sample; ``None`` if it cannot be read."""
        try:
            return cls.model_validate_json(line)
        except ValidationError:
            return None
