"""Refuses booleans for the numbers that people and programs give. Pydantic alone takes ``true`` for 1."""

from __future__ import annotations

from typing import Final

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


NUMBER: Final = BeforeValidator(_no_boolean)
"""Annotates a number that may not be a boolean. It comes last, behind the bounds."""
