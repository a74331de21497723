"""Metadata of documents, and conditions on it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from inferfleet.schemas.limits import MOST
from inferfleet.schemas.wire_model import GivenModel

Number = (
    Annotated[int, Field(ge=-MOST, le=MOST, strict=True)]
    | Annotated[float, Field(ge=-MOST, le=MOST, strict=True)]
)
Word = Annotated[str, Field(max_length=512)]
Value = bool | Number | Word
"""What a document can be searched by."""

Key = Annotated[str, Field(min_length=1, max_length=128)]

Metadata = Annotated[dict[Key, Value | Annotated[list[Word], Field(max_length=64)]], Field(max_length=32)]


class Bounds(GivenModel):
    """Numbers between bounds."""

    model_config = ConfigDict(extra="forbid")

    gt: Number | None = None
    gte: Number | None = None
    lt: Number | None = None
    lte: Number | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Bounds:
        if not self.model_dump(exclude_none=True):
            raise PydanticCustomError("bounds", "give a number for at least one of gt, gte, lt and lte")
        return self


MAX_ALTERNATIVES: Final = 64
"""How many values the conditions of a search may name in all: Redis compares each with each chunk."""

Condition = Value | Annotated[list[Value], Field(min_length=1, max_length=MAX_ALTERNATIVES)] | Bounds
"""A value that the metadata has, several of which it has one, or bounds of a number."""


def _few_alternatives(where: dict[str, Condition]) -> dict[str, Condition]:
    count = sum(len(wanted) if isinstance(wanted, list) else 1 for wanted in where.values())
    if count > MAX_ALTERNATIVES:
        raise PydanticCustomError(
            "alternatives",
            "has {count} values in all; at most {most} are allowed",
            {"count": count, "most": MAX_ALTERNATIVES},
        )
    return where


Where = Annotated[dict[Key, Condition], Field(max_length=16), AfterValidator(_few_alternatives)]
