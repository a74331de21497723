"""The base of every model on the wire: frozen, and silent about the values it refuses."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """A frozen message.

    Unknown fields are ignored, so that a newer producer can talk to an older worker.
    Validation errors never quote the input: a prompt must not reach a log that way.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )
