"""Metadata of documents, and conditions on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from inferfleet.schemas.limits import MOST
from inferfleet.schemas.wire_model import WireModel

Number = (
    Annotated[int, Field(ge=-MOST, le=MOST, strict=True)]
    | Annotated[float, Field(ge=-MOST, le=MOST, strict=True)]
)
Word = Annotated[str, Field(max_length=512)]
Value = bool | Number | Word
"""What a document can be searched by."""

Key = Annotated[str, Field(min_length=1, max_length=128)]

Metadata = Annotated[dict[Key, Value | Annotated[list[Word], Field(max_length=64)]], Field(max_length=32)]


class Bounds(WireModel):
    """Numbers between bounds."""

    model_config = ConfigDict(extra="forbid")

    gt: Number | None = None
    gte: Number | None = None
    lt: Number | None = None
    lte: Number | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Bounds:
        if not self.model_fields_set:
            raise ValueError("give at least one of gt, gte, lt and lte")
        return self


Condition = Value | Annotated[list[Value], Field(min_length=1, max_length=64)] | Bounds
"""A value that the metadata has, several of which it has one, or bounds of a number."""

Where = Annotated[dict[Key, Condition], Field(max_length=16)]
