"""The base of every model on the wire: frozen, with errors that never quote a refused value."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from inferfleet.schemas.near_match import did_you_mean


class WireModel(BaseModel):
    """A frozen message.

    It ignores unknown fields, so that a newer producer can talk to an older worker. Its validation errors
    never quote the input, so that no prompt reaches a log.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )


class GivenModel(WireModel):
    """A message that programs make by a call, as ``Job(body=...)``: they must not misspell a field."""

    def __init__(self, /, **fields: Any) -> None:
        """Make a message of its fields.

        Raises:
            TypeError: It has no such field.
            ValidationError: A value is invalid.

        """
        known = type(self).__pydantic_fields__
        if not fields.keys() <= known.keys():
            name = min(fields.keys() - known.keys())
            raise TypeError(f"{type(self).__name__} has no field {name!r}{did_you_mean(name, known)}")
        super().__init__(**fields)

    # Without this, pydantic would call ``__init__`` also for what is read.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]
