"""What callers ask of the runs of agents."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from inferfleet.schemas.job import PoolName
from inferfleet.schemas.run import DEFAULT_AGENT_QUEUE, RunLimits


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class StartRun(_Request):
    """Start a run of an agent."""

    input: str
    queue: PoolName = DEFAULT_AGENT_QUEUE
    priority: Annotated[int, Field(ge=0, le=9)] | str | None = None
    limits: RunLimits | None = None


class ApproveCall(_Request):
    """Let a run make a tool call; with ``result``, the model gets that instead."""

    question: str
    result: str | None = None


class DenyCall(_Request):
    """Let a run not make a tool call. The model reads the reason."""

    question: str
    reason: str = ""
