"""The base of every model on the wire: frozen, with errors that never quote a refused value."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
