"""What a worker is told in its control queue.

Commands come by the control exchange. Every worker receives each command; the one that it concerns acts.
Announcements of urgent jobs come by the jobs exchange, to the workers of one pool.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from inferfleet.schemas.job import JobId
from inferfleet.schemas.limits import LONGEST_S
from inferfleet.schemas.numbers import NUMBER
from inferfleet.schemas.wire_model import WireModel


class CancelJob(WireModel):
    """Stop the job if you are running it. With ``keep``, its partial answer stays in its session."""

    kind: Literal["cancel"] = "cancel"
    job_id: JobId
    keep: bool = False


class DrainWorker(WireModel):
    """Take no more jobs, finish or hand over the running ones, and exit."""

    kind: Literal["drain"] = "drain"
    worker_id: str


class UrgentJob(WireModel):
    """An urgent job of your pool was published: take it from the queue if your engine is full."""

    kind: Literal["urgent"] = "urgent"
    job_id: JobId


class SwapStrategy(StrEnum):
    """How a worker replaces its model."""

    SIDE_BY_SIDE = "side-by-side"
    """It loads the new model beside the old one, so it needs memory for both; it keeps serving."""

    RESTART = "restart"
    """It unloads the old model first; it serves nothing while it loads the new one."""


class SwapModel(WireModel):
    """Replace your model, if the new one passes its probe.

    ``swap_id`` is the command's: a worker that gets it again ignores it. ``engine_args`` of ``None`` are the
    worker's current ones. Running answers have ``drain_timeout_s`` (by default the worker's own setting) to
    end on the old model; then they are handed over. ``probe_hash`` is what the probe has to print, and
    ``max_perplexity`` bounds the perplexity of its text. A model with another served name is refused, unless
    ``allow_rename``: jobs that name the old one would fail.
    """

    kind: Literal["swap"] = "swap"
    swap_id: Annotated[str, Field(min_length=1, max_length=64)]
    worker_id: str
    model: Annotated[str, Field(min_length=1)]
    engine_args: dict[str, Any] | None = None
    strategy: SwapStrategy = SwapStrategy.SIDE_BY_SIDE
    drain_timeout_s: Annotated[float, Field(ge=0, le=LONGEST_S), NUMBER] | None = None
    probe_hash: str | None = None
    max_perplexity: Annotated[float, Field(gt=0), NUMBER] | None = None
    allow_rename: bool = False


Control = Annotated[CancelJob | DrainWorker | SwapModel | UrgentJob, Field(discriminator="kind")]

control: TypeAdapter[Control] = TypeAdapter(Control)
"""Reads one control message: ``control.validate_json(body)``."""
