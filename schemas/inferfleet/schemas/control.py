"""The commands on the control exchange. Every worker receives each command; the one that it concerns acts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from inferfleet.schemas.job import JobId
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


Control = Annotated[CancelJob | DrainWorker, Field(discriminator="kind")]

control: TypeAdapter[Control] = TypeAdapter(Control)
"""Reads one control message: ``control.validate_json(body)``."""
