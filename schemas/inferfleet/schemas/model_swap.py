"""What a worker tells of the last swap of its model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from inferfleet.schemas.wire_model import WireModel


class SwapState(StrEnum):
    """How far the swap of a worker's model is."""

    DRAINING = "draining"
    """Running answers end on the old model, before it is unloaded (``restart`` only)."""
    LOADING = "loading"
    PROBING = "probing"
    SWITCHED = "switched"
    """New attempts start on the new model; answers that ran before may still end on the old one."""
    ROLLED_BACK = "rolled_back"
    """The old model goes on; the reason says why."""

    @property
    def over(self) -> bool:
        """Whether it is decided which model goes on."""
        return self in {SwapState.SWITCHED, SwapState.ROLLED_BACK}


class ModelSwap(WireModel):
    """The last swap of a worker's model.

    ``reason`` says why the swap was rolled back. ``probe_hash`` is that of the new model.
    ``without_service_s`` is how long the worker had no model to start jobs on. ``busy`` is true until the
    other model has been unloaded: until then the worker refuses another swap.
    """

    swap_id: str
    model: str
    state: SwapState
    since: AwareDatetime
    reason: str = ""
    probe_hash: str = ""
    without_service_s: Annotated[float, Field(ge=0)] = 0.0
    busy: bool = True
